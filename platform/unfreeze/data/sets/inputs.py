"""What tells unchanged inputs from changed ones without reading them: file sizes and times, S3 tags."""

import hashlib
from pathlib import Path
from typing import Any

from unfreeze.config import Config
from unfreeze.data.pixels.files import fingerprint, list_files
from unfreeze.data.pixels.keys import specification
from unfreeze.data.sets.downloads import DOWNLOADED, download_root, downloaded_files
from unfreeze.errors import StorageError


def describe_inputs(config: Config) -> dict[str, Any] | None:
    """Everything that decides model, data and plasticity, JSON-ready; None where this machine cannot see a file of it.

    Weights that timm fetches are taken to be those of the model's name.
    """
    places: dict[str, Any] = {
        "path": config.data.path,
        "source_path": config.data.source_path,
        "weights": config.model.weights,
    }
    if config.data.name == "folder":
        places |= {part: getattr(config.data, part) for part in ("train", "val", "test")}
    elif config.data.name == "domainnet" and config.data.path is not None:
        places["path"] = f"{config.data.path.rstrip('/')}/{config.data.domain}"
    elif config.data.name == "digits":
        places["path"] = None
    if config.model.weights == "random":
        places["weights"] = None
    # timm's own ways to name a file, which it may look for anywhere.
    if {"checkpoint_path", "pretrained_cfg_overlay"} & config.model.kwargs.keys() or ":" in config.model.name:
        return None
    is_download = config.data.name in DOWNLOADED
    if is_download:
        places["path"] = config.data.path or str(download_root(config.data))
    seen: dict[str, Any] = {name: _fingerprint(place) for name, place in places.items() if place is not None}
    if is_download and not places["path"].startswith("s3://"):
        root = Path(places["path"])
        seen["path"] = fingerprint(root, downloaded_files(config.data.name, root))
    if not all(seen.values()):  # what is not there, or not yet, tells nothing apart
        return None
    if config.model.weights is None:  # the weights that come with the package
        shipped = sorted((Path(__file__).parents[2] / "models" / "tiny").glob("*.safetensors"))
        seen["weights"] = [hashlib.sha256(path.read_bytes()).hexdigest() for path in shipped]
    return specification("inputs", config.model, config.data, config.plasticity) | {"seen": seen}


def _fingerprint(location: str) -> list[Any]:
    """Empty where nothing is to be seen."""
    if location.startswith("s3://"):
        return _s3_fingerprint(location)
    path = Path(location)
    if path.is_dir():
        return fingerprint(path, list_files(path))
    if not path.is_file():
        return []
    beside = path.parent.iterdir() if path.suffix == ".json" else [path]  # an index of weights names files beside it
    return fingerprint(path.parent, sorted(each.name for each in beside if each.is_file()))


def _s3_fingerprint(location: str) -> list[Any]:
    """Of the tree below the location, or of the one object of that name; empty where there is none to be seen."""
    from unfreeze.storage.s3 import S3Storage

    prefix, _, name = location.rstrip("/").rpartition("/")
    try:
        tree = S3Storage(location).fingerprints()
        if tree or prefix == "s3:/":  # a whole bucket is a tree
            return tree
        if name.endswith(".json"):
            return S3Storage(prefix).fingerprints()
        return [entry for entry in S3Storage(prefix).fingerprints(name) if entry[0] == name]
    except StorageError:  # the nodes may have credentials that this machine lacks
        return []
