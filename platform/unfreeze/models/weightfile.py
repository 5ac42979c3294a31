"""Files of weights, known by content, whatever they are called: safetensors, PyTorch checkpoints, shards of either,
NumPy archives."""

import argparse
import functools
import json
import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from unfreeze.errors import ModelError
from unfreeze.models.filekind import file_kind

logger = logging.getLogger(__name__)

# Where training code keeps the weights within a checkpoint; averages before what they are of, teacher before student.
_CONTAINERS = ("state_dict_ema", "model_ema", "ema", "teacher", "state_dict", "model", "module", "student")


@functools.cache
def note(text: str) -> None:
    """How a file was understood: said once, however often it is read."""
    logger.warning("model.weights: %s", text)


def read_weights(path: Path, fetch: Callable[[str], Path]) -> dict[str, Any]:
    """Name → tensor of a file of weights; of an index, of all shards that it names.

    ``fetch``: the path of a file beside this one.

    Raises:
        ModelError: begins with what the file holds.
    """
    if file_kind(path) == "index":
        shards = sorted(set(map(str, json.loads(path.read_text())["weight_map"].values())))
        if not shards:
            raise ModelError(f"{path} is an index that names no shard; fetch it anew")
        found: dict[str, Any] = {}
        for shard in shards:
            try:
                found |= _read_one(fetch(shard))
            except ModelError as error:
                raise ModelError(
                    f"{path} is an index of {len(shards)} shards, of which {shard} fails: {error}"
                ) from error
        return found
    return _read_one(path)


def _read_one(path: Path) -> dict[str, Any]:
    kind = file_kind(path)
    if kind == "index":
        raise ModelError(f"{path} is an index of shards that is itself named as a shard")
    if kind == "numpy":
        return _load_numpy(path)
    try:
        # Not by safetensors' own mapping: its errors do not say what was wrong with the file's length.
        loaded = load_safetensors(path.read_bytes()) if kind == "safetensors" else _load_checkpoint(path)
    except SafetensorError as error:
        raise ModelError(
            f"{path} is a safetensors file that is cut short or damaged ({error}); fetch it anew"
        ) from error
    return _unwrap(path, loaded)


def _load_numpy(path: Path) -> dict[str, Any]:
    """The arrays of an .npz archive, as JAX models are published; bfloat16, which NumPy has no type for, as that."""
    try:
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} is a NumPy archive that cannot be read ({error}); fetch it anew") from error
    is_bfloat16 = {name: array.dtype.kind == "V" and array.dtype.itemsize == 2 for name, array in arrays.items()}
    odd = [name for name, array in arrays.items() if array.dtype.kind not in "fiub" and not is_bfloat16[name]]
    if odd:
        raise ModelError(f"{path} is a NumPy archive whose {odd[0]} is {arrays[odd[0]].dtype}, no numbers")
    return {
        name: torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        if is_bfloat16[name]
        else torch.from_numpy(array)
        for name, array in arrays.items()
    }


def _load_checkpoint(path: Path) -> Any:
    try:
        # What many training scripts keep beside their weights, the options of the command line; it runs no code.
        with (
            torch.serialization.safe_globals([argparse.Namespace]),
            warnings.catch_warnings(),
            path.open("rb") as file,  # by a name that ends in .safetensors it would be read as such
        ):
            warnings.filterwarnings("ignore", message="Validating sparse tensor invariants")  # they are refused
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"objects ({found[1]})" if found else "objects"
        raise ModelError(
            f"{path} is a pickle that holds {what} besides tensors, which reading could run as code; where it comes "
            f"from, save the weights alone: torch.save(model.state_dict(), …)"
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"{path} is a PyTorch checkpoint that is cut short or damaged ({reason}); fetch it anew"
        ) from error


def _unwrap(path: Path, loaded: Any) -> dict[str, Any]:
    """The tensors, out of the dictionaries that training code wraps around them."""
    while isinstance(loaded, Mapping):
        tensors = {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
        wrapped = [key for key in _CONTAINERS if isinstance(loaded.get(key), Mapping) and loaded[key]]
        if not wrapped and tensors:
            return tensors
        if not wrapped:
            wrapped = [key for key, value in loaded.items() if _holds_tensors(value)]
            if len(wrapped) != 1:
                keys = ", ".join(map(str, (wrapped or list(loaded))[:8])) or "nothing"
                several = f"several dictionaries of tensors, {keys}; keep one in a file of its own"
                raise ModelError(f"{path} holds " + (several if wrapped else f"no tensors: there is {keys}"))
        if len(wrapped) > 1:
            note(f"of {', '.join(wrapped)} in the file, {wrapped[0]} is read")
        loaded = loaded[wrapped[0]]
    raise ModelError(f"{path} holds a {type(loaded).__name__}, no state_dict(); save the weights alone")


def _holds_tensors(value: Any) -> bool:
    """At any depth, an optimizer's state left out."""
    if not isinstance(value, Mapping) or "param_groups" in value:
        return False
    return any(isinstance(each, torch.Tensor) or _holds_tensors(each) for each in value.values())
