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
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from unfreeze.errors import ModelError

logger = logging.getLogger(__name__)

# Where training code keeps the weights within a checkpoint; averages before what they are of, teacher before student.
_CONTAINERS = ("state_dict_ema", "model_ema", "ema", "teacher", "state_dict", "model", "module", "student")
_WEB_PAGE = (b"<!doctype", b"<html", b"<?xml", b"<head")


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
    if _kind(path) == "index":
        shards = sorted(set(json.loads(path.read_text())["weight_map"].values()))
        found: dict[str, Any] = {}
        for shard in shards:
            found |= _read_one(fetch(shard))
        return found
    return _read_one(path)


def _read_one(path: Path) -> dict[str, Any]:
    kind = _kind(path)
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


def _kind(path: Path) -> Literal["safetensors", "index", "checkpoint", "numpy"]:
    """By the first bytes. Raises `ModelError` for all else that ends up in the place of weights."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(1024)
    text = start.lstrip().lower()
    if not start:
        raise ModelError(f"{path} is an empty file; fetch the weights anew")
    if start.startswith(b"version https://git-lfs"):
        raise ModelError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` where it was cloned")
    if text.startswith(_WEB_PAGE):
        raise ModelError(f"{path} is a web page, not weights: a login or a viewer was saved; download the file itself")
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 100 << 20:  # safetensors' own limit of its header
        if 8 + int.from_bytes(start[:8], "little") > size:
            raise ModelError(f"{path} is a safetensors file of {size} bytes that ends within its header; fetch it anew")
        return "safetensors"
    if text.startswith((b"{", b"[")):
        return _json_kind(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith(".npy") for name in names):
            return "numpy"
        if any("/code/" in name for name in names):
            raise ModelError(f"{path} is a TorchScript program; save the state_dict() of its model instead")
        if any(name.endswith("/data.pkl") for name in names):
            return "checkpoint"
        raise ModelError(f"{path} is a ZIP archive of {', '.join(names[:3])} …; unpack it and give the weights in it")
    if start.startswith(b"\x80"):  # a pickle, as torch.save wrote it before version 1.6
        return "checkpoint"
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")) or start[257:262] == b"ustar":
        raise ModelError(f"{path} is a compressed archive; unpack it and give the weights in it")
    raise ModelError(
        f"{path} is neither a safetensors file nor a PyTorch checkpoint: it begins with {start[:16]!r}; was it cut "
        f"short?"
    )


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


def _json_kind(path: Path) -> Literal["index"]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ModelError(f"{path} is text that looks like JSON, not weights: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("weight_map"), dict):
        return "index"
    keys = f" with {', '.join(list(content)[:5])}" if isinstance(content, dict) else ""
    raise ModelError(f"{path} is a JSON file{keys}, not weights; give the .safetensors or .bin that lies beside it")


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
        if not wrapped:
            if not tensors:
                keys = ", ".join(map(str, list(loaded)[:8])) or "nothing"
                raise ModelError(f"{path} holds no tensors: there is {keys}")
            return tensors
        if len(wrapped) > 1:
            note(f"of {', '.join(wrapped)} in the file, {wrapped[0]} is read")
        loaded = loaded[wrapped[0]]
    raise ModelError(f"{path} holds a {type(loaded).__name__}, no state_dict(); save the weights alone")
