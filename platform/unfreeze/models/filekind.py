"""Which kind of weights a file holds, told by its first bytes alone, without torch, which takes seconds to import."""

import json
import zipfile
from pathlib import Path
from typing import Literal

from unfreeze.errors import ModelError

_WEB_PAGE = (b"<!doctype", b"<html", b"<?xml", b"<head")
# Where in a file → what it is.
_FOREIGN = {
    (0, b"GGUF"): "GGUF, which is quantized; give the float weights",
    (0, b"\x89HDF"): "HDF5, as Keras has it; save the weights as safetensors or by torch.save",
    (4, b"TFL3"): "TensorFlow Lite; save the weights as safetensors or by torch.save",
    (1, b"\xa6params"): "Flax's msgpack; give the model's PyTorch or safetensors file",
}


def local_file(location: str, cache_dir: Path) -> Path:
    """The file, here. Raises `ModelError` where there is none."""
    if not location.startswith("s3://"):
        path = Path(location).expanduser()
        if path.is_dir():
            files = ", ".join(sorted(file.name for file in path.iterdir() if file.is_file())[:8]) or "no file"
            raise ModelError(
                f"model.weights={location!r} is a folder with {files}; give the file, or the index of shards"
            )
        if not path.is_file():
            raise ModelError(f"no such weights file: model.weights={location!r}; null takes timm's own, 'random' none")
        return path
    from unfreeze.data.sets.stage import stage_file

    return stage_file(location, cache_dir=cache_dir)


def file_kind(path: Path) -> Literal["safetensors", "index", "checkpoint", "numpy"]:
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
    if start.startswith(b"PK"):
        raise ModelError(f"{path} is a PyTorch checkpoint or another ZIP archive that is cut short; fetch it anew")
    for (place, mark), what in _FOREIGN.items():
        if start[place:].startswith(mark):
            raise ModelError(f"{path} is a file of {what}")
    raise ModelError(
        f"{path} is neither a safetensors file nor a PyTorch checkpoint: it begins with {start[:16]!r}; was it cut "
        f"short?"
    )


def _json_kind(path: Path) -> Literal["index"]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ModelError(f"{path} is text that looks like JSON, not weights: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("weight_map"), dict):
        return "index"
    keys = f" with {', '.join(list(content)[:5])}" if isinstance(content, dict) else ""
    raise ModelError(f"{path} is a JSON file{keys}, not weights; give the .safetensors or .bin that lies beside it")
