"""What can be known to be wrong before anything starts, said at once: model, weights, places of images, storage,
compiler.

Imports no Ray, and torch only where timm knows the model that is named: an answer to a mistake takes no longer than it
must.
"""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from unfreeze.config import Config, ModelConfig
from unfreeze.errors import ConfigError, ModelError, StorageError
from unfreeze.models.filekind import file_kind, local_file
from unfreeze.models.names import unknown_name
from unfreeze.records import COMPONENTS
from unfreeze.report.streams import say
from unfreeze.storage.base import check_writable, open_storage
from unfreeze.storage.ledger import Ledger

_PLACES = ("path", "train", "val", "test", "source_path")


def check_sweep(config: Config) -> None:
    """`check_inputs` of a sweep that begins; of one that goes on, its ledger knows the inputs.

    Raises:
        ConfigError: as `check_inputs`.
        SweepMismatchError: the name is taken by another configuration.
    """
    try:
        begun = Ledger(config.storage, config.sweep.name).is_claimed(config)
    except StorageError:
        begun = False  # said with all else
    if not begun:
        unread = [
            f"{section}.{option}={value} is read by nothing: a sweep chooses its own; {command} is for that"
            for section, command in (("trial", "sweeps/finetune.py"), ("probe", "sweeps/probe.py"))
            for option, value in asdict(getattr(config, section)).items()
            if value != asdict(getattr(Config(), section))[option]
        ]
        check_inputs(config, selections=[*config.search.baselines, *config.search.selections], unread=unread)


def check_inputs(config: Config, *, selections: list[str], writes: bool = True, unread: Sequence[str] = ()) -> None:
    """``selections``: those that will be run; ``writes``: whether anything is put into the storage.

    ``unread``: lines on options that the command does not look at.

    Raises:
        ConfigError: lists every problem.
    """
    problems = [*unread, *_problems(config, selections, writes=writes)]
    if problems:
        heading = f"{len(problems)} problems, nothing was started: " if len(problems) > 1 else ""
        raise ConfigError(heading + "\n  ".join(problems))


def _problems(config: Config, selections: list[str], *, writes: bool) -> Iterator[str]:
    if writes:
        try:
            check_writable(open_storage(config.storage))
        except StorageError as error:
            yield str(error)
        else:
            if config.search.learn_from:
                from unfreeze.search.learned import unknown_sweeps  # scipy

                yield from unknown_sweeps(config)
    if config.finetune.compile:
        yield from _compiler_problem(on_cpu=config.cluster.gpus_per_worker == 0)
    if any(getattr(config.data, name) is not None for name in _PLACES):
        from unfreeze.data.sets.places import place_problems

        yield from place_problems(config.data)
    plain = {"all", "none", *COMPONENTS}  # these and the embedded model fit
    if config.model != ModelConfig() or not plain.issuperset(selections):
        yield from _model_problems(config, selections)


def _model_problems(config: Config, selections: list[str]) -> Iterator[str]:
    model, cache_dir = config.model, Path(config.data.cache_dir)
    if (unknown := unknown_name(model.name)) is not None:
        yield unknown
        if model.weights not in (None, "random") and "://" not in model.weights:
            try:
                file_kind(local_file(model.weights, cache_dir))
            except ModelError as error:
                yield str(error)
        return
    say(f"checking the model {model.name} …")  # torch and timm take seconds to import
    from unfreeze.models.check import model_problems

    yield from model_problems(model, selections, cache_dir=cache_dir)


def _compiler_problem(*, on_cpu: bool) -> Iterator[str]:
    """Of this machine's, which on a cluster has the image of the workers: without one every trial would fail."""
    needed = [os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")]
    if not on_cpu:  # Triton takes a C compiler
        needed += [os.environ.get("CC", "gcc"), "clang"]
    if not any(shutil.which(name) for name in needed):
        yield (
            f"finetune.compile=true needs a compiler, and there is no {' or '.join(needed)} here: install one, name it "
            f"by {'CXX' if on_cpu else 'CXX or CC'}, or leave finetune.compile out"
        )
