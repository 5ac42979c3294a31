"""The pre-pass with Ray's own actors: shared by any number of them, one of them killed, recalled without Ray."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from unfreeze.config import ClusterConfig, Config
from unfreeze.data.sets.catalog import load_source, load_train_val
from unfreeze.errors import ClusterError, ModelError
from unfreeze.load import load_config
from unfreeze.models.build import build_model, input_size
from unfreeze.plasticity.actor import PrePass, measure_with
from unfreeze.plasticity.local import measure_plasticity
from unfreeze.records import PlasticityTable, to_dict
from unfreeze.sweep.prepass import measure_once
from unfreeze.sweep.resources import plain_errors

pytestmark = pytest.mark.ray


def comparable(table: PlasticityTable) -> dict[str, Any]:
    """All but the seconds; dicts compare to the last digit."""
    return to_dict(replace(table, seconds=0.0))


def real_config(cache_dir: Path, **options: Any) -> Config:
    plasticity = {"num_pairs": 45, "batch_size": 8, "modes": ["reference", "in_situ"], "stop_early": False, **options}
    return load_config({"data": {"cache_dir": str(cache_dir), "max_train_images": 60}, "plasticity": plasticity})


STOPS = {"num_pairs": 60, "stop_early": True, "min_observations": 8, "relative_error": 0.02}
SCORED = {"scores": ["parameters", "gradient_norm"]}


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_a_pre_pass_on_ray_is_recalled_without_it(head: Any, tmp_path: Path) -> None:
    """Joins the head and leaves it; the file's first, because what follows stays joined."""
    config = replace(
        real_config(tmp_path / "cache"), storage=str(tmp_path / "runs"), cluster=ClusterConfig(address=head.address)
    )
    table = measure_once(config)
    assert not ray.is_initialized()
    assert {row.num_pairs for row in table.rows} == {45}

    def refuse(**_: Any) -> None:
        raise AssertionError("Ray is not needed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "init", refuse)
        assert measure_once(config) == table


@pytest.fixture(scope="module")
def cluster(head: Any) -> Iterator[None]:
    ray.init(address=head.address, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def hire(cluster: None, cache_dir: Path) -> Iterator[Callable[[], Any]]:
    """Starts a real actor that can be told to die, and writes down what it measured."""

    # Local, so that cloudpickle carries it: the workers cannot import a test.
    class Scripted(PrePass):
        def begin(self, config: Config, log: str, dies_at: int | None = None, delay_s: float = 0.0) -> Any:
            self._config, self._log, self._dies_at, self._delay_s = config, log, dies_at, delay_s
            self._count = 0
            return self.facts()

        def rates(self, index: int) -> Any:
            self._count += 1
            if self._count == self._dies_at:
                os._exit(1)
            time.sleep(self._delay_s)
            rates = super().rates(index)
            with Path(self._log).open("a") as file:
                file.write(f"{index}\n")
            return rates

        def broken(self) -> None:
            raise ModelError("the weights of block 1 mha hold NaN")

    hired = []

    def start() -> Any:
        actor = ray.remote(num_cpus=0, max_concurrency=2)(Scripted).remote(real_config(cache_dir))
        hired.append(actor)
        return actor

    yield start
    for actor in hired:
        ray.kill(actor)


@pytest.fixture(scope="module")
def crew(hire: Callable[[], Any]) -> tuple[Any, Any, Any]:
    """Three actors, started together; the third is there to be lost."""
    return hire(), hire(), hire()


@pytest.fixture
def share(crew: tuple[Any, Any, Any], cache_dir: Path, tmp_path: Path) -> Callable[..., tuple[PlasticityTable, list]]:
    """(actors, how each behaves, plasticity options) → the table, and the batches that were finished."""

    def run(
        actors: Sequence[Any], behaviour: Sequence[dict[str, Any]] = ({}, {}, {}), **options: Any
    ) -> tuple[PlasticityTable, list[int]]:
        log, config = tmp_path / "batches.txt", real_config(cache_dir, **options)
        log.write_text("")
        begun = [a.begin.remote(config, str(log), **how) for a, how in zip(actors, behaviour, strict=False)]
        model, data = ray.get(begun)[0]
        with plain_errors():
            table = measure_with(actors, config, model, data)
        return table, [int(line) for line in log.read_text().split()]

    return run


@pytest.fixture(scope="module")
def by_local(cache_dir: Path) -> Callable[..., PlasticityTable]:
    """The same by `measure_plasticity`, in this process."""

    def measure(**options: Any) -> PlasticityTable:
        config = real_config(cache_dir, **options)
        size = input_size(config.model)
        data = load_train_val(config.data, image_size=size)
        base = build_model(config.model, num_classes=len(data.classes), cache_dir=cache_dir)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as the actors have: a sum's order is part of its last digit
        try:
            return measure_plasticity(
                base.module,
                base.spec,
                load_source(config.data, image_size=size),
                data.train,
                config.plasticity,
                device=torch.device("cpu"),
                model_digest=base.facts.digest,
            )
        finally:
            torch.set_num_threads(threads)

    return measure


Share = Callable[..., tuple[PlasticityTable, list[int]]]


def test_one_two_and_no_actors_give_the_same_table(
    share: Share, crew: tuple[Any, Any, Any], by_local: Callable[..., PlasticityTable]
) -> None:
    alone, batches = share(crew[:1], **SCORED)
    assert sorted(batches) == list(range(6))
    assert {row.num_pairs for row in alone.rows} == {45}
    together, batches = share(crew[:2], [{"delay_s": 0.05}, {}], **SCORED)
    assert sorted(batches) == list(range(6))
    assert comparable(together) == comparable(alone)
    local = by_local()
    assert set(alone.scores) == set(SCORED["scores"])
    settings = {**alone.settings, "scores": []}
    assert comparable(replace(alone, scores={}, settings=settings)) == comparable(local)


def test_stopping_early_is_the_same_with_any_number_of_actors(
    share: Share, crew: tuple[Any, Any, Any], by_local: Callable[..., PlasticityTable]
) -> None:
    alone, _ = share(crew[:1], **STOPS)
    assert {row.num_pairs for row in alone.rows} < {16, 24, 32, 40, 48, 56}  # neither the first look nor the end
    assert comparable(share(crew[:2], **STOPS)[0]) == comparable(alone)
    assert comparable(share(crew[:2], [{"delay_s": 0.1}, {}], **STOPS)[0]) == comparable(alone)
    assert comparable(by_local(**STOPS)) == comparable(alone)


def test_an_error_of_ours_arrives_as_itself(crew: tuple[Any, Any, Any], cache_dir: Path) -> None:
    with pytest.raises(ModelError, match="block 1 mha hold NaN") as caught, plain_errors():
        ray.get(crew[0].broken.remote())
    assert type(caught.value) is ModelError
    config = real_config(cache_dir)
    config.model.weights = "/nowhere/weights.safetensors"
    with pytest.raises(ModelError, match="no such weights file"), plain_errors():
        ray.get(crew[0].begin.remote(config, ""))


def test_a_killed_process_costs_no_digit_and_no_finished_batch(
    share: Share, crew: tuple[Any, Any, Any], cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Last of the file's: the actor is gone. It is the first one, so that another takes over all it was."""
    alone, _ = share(crew[:1])
    with caplog.at_level(logging.WARNING):
        table, batches = share([crew[2], crew[0]], [{"dies_at": 3}, {"delay_s": 0.3}])
    assert comparable(table) == comparable(alone)
    assert sorted(batches) == list(range(6))
    assert "an actor of the pre-pass was lost; 1 are left" in caplog.messages
    with pytest.raises(ClusterError, match="every actor of the pre-pass was lost"):
        measure_with(crew[2:], real_config(cache_dir), *ray.get(crew[0].facts.remote()))
