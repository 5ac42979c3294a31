"""The model that people take away: timm's own layout, weights beside a config.json that says how images become input.

`write_export` makes the folder, `Exported.open` reads it with nothing but timm: what is said of the model's accuracy is
measured on what the folder holds, the way everybody else loads it.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.models import save_for_hf
from torch import Tensor, nn

from unfreeze.data.pixels.crops import InputSpec
from unfreeze.data.pixels.decode import open_rgb
from unfreeze.data.pixels.files import list_files, split_off_images
from unfreeze.data.pixels.grey import White
from unfreeze.data.pixels.part import Part
from unfreeze.data.pixels.reading import DECODE_THREADS, FORMATS, UNREADABLE
from unfreeze.errors import DataError, ModelError
from unfreeze.models import tiny

WEIGHTS, CONFIG = "model.safetensors", "config.json"
READING = "reading"  # in CONFIG: how image files become RGB


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says of one image."""

    path: str
    label: str  # the most probable class
    probability: float
    probabilities: dict[str, float]  # class → probability; they sum to 1


@dataclass(frozen=True, slots=True)
class Exported:
    """A model with the preprocessing that its config.json states, on a device, in float32."""

    module: nn.Module
    transform: Callable[[Image.Image], Tensor]
    classes: tuple[str, ...]
    device: torch.device
    upright: bool = False  # turn images as their EXIF orientation says
    white: White | None = None  # of deep grey images, as in the set that it was trained on

    @classmethod
    def open(cls, folder: Path, device: torch.device) -> "Exported":
        """Read an export, by timm alone.

        Raises:
            ModelError: there is none, or it is damaged.
        """
        if not (folder / CONFIG).is_file():
            inside = folder / "export"
            hint = f"did you mean {inside}?" if (inside / CONFIG).is_file() else "give the folder export/ of a sweep"
            raise ModelError(f"{folder} holds no exported model, which is {WEIGHTS} beside {CONFIG}; {hint}")
        assert tiny.unfreeze_tiny  # imported, it is known to timm
        try:
            module = timm.create_model(f"local-dir:{folder}", pretrained=True).eval().to(device)
            classes = tuple(module.pretrained_cfg["label_names"])
            transform = create_transform(**resolve_model_data_config(module))
            reading = json.loads((folder / CONFIG).read_text()).get(READING, {"upright": False, "white": {}})
        except Exception as error:  # a folder of somebody else's can fail in as many ways as there are models
            raise ModelError(f"the model in {folder} cannot be loaded: {error!r}") from error
        return cls(module, transform, classes, device, reading["upright"], White(**reading["white"]))

    @torch.inference_mode()
    def logits(self, num_images: int, image: Callable[[int], Image.Image], *, batch_size: int) -> Tensor:
        """Of ``image(0)`` … ``image(num_images - 1)``, RGB: float32 (num_images, classes) on the CPU."""
        with ThreadPoolExecutor(DECODE_THREADS) as threads:
            batches = []
            for start in range(0, num_images, batch_size):
                chosen = range(start, min(start + batch_size, num_images))
                inputs = list(threads.map(lambda index: self.transform(image(index)), chosen))
                batches.append(self.module(torch.stack(inputs).to(self.device)).cpu())
        return torch.cat(batches)

    def count_correct(self, part: Part, *, batch_size: int) -> int:
        """How many images of a data set's part are recognised, each as it came."""
        found = self.logits(len(part), part.original, batch_size=batch_size)
        return int((found.argmax(1) == torch.from_numpy(part.labels)).sum())

    def predict(self, images: str | Path | Sequence[str | Path], *, batch_size: int = 64) -> list[Prediction]:
        """Classes and probabilities of image files; of a folder, those of every image below it.

        Raises:
            DataError: there is no image, or files that cannot be read as one; names them.
        """
        paths = list(_image_files([images] if isinstance(images, str | Path) else images))
        if not paths:
            raise DataError("no images to predict: give image files, or folders that hold some")
        unreadable = [str(path) for path in paths if not _is_image(path)]
        if unreadable:
            raise DataError(f"cannot be read as images: {', '.join(unreadable[:10])}; {len(unreadable)} in all")
        found = self.logits(len(paths), lambda index: self._read(paths[index]), batch_size=batch_size).softmax(1)
        return [self._prediction(path, row) for path, row in zip(paths, found.tolist(), strict=True)]

    def _read(self, path: Path) -> Image.Image:
        try:
            return open_rgb(path, upright=self.upright, white=self.white)
        except UNREADABLE as error:
            raise DataError(f"{path} cannot be read as an image: {error}") from error

    def _prediction(self, path: Path, row: list[float]) -> Prediction:
        best = max(range(len(row)), key=row.__getitem__)
        return Prediction(str(path), self.classes[best], row[best], dict(zip(self.classes, row, strict=True)))


def write_export(
    folder: Path,
    module: nn.Module,
    spec: InputSpec,
    *,
    classes: Sequence[str],
    stored: int,
    crop_share: float,
    layer_norm_eps: float | None,
    upright: bool,
    white: White,
) -> None:
    """Weights and config.json in ``folder``, which `timm.create_model` loads as ``local-dir:folder``.

    ``stored``: side in px of the squares that were cut from the images, see `stored_side`; where it is smaller than the
    input's, all of each square was enlarged. ``layer_norm_eps``: stated alone, since timm's config cannot set it.
    ``upright`` and ``white``: how files become RGB, for `Exported.predict`; timm takes images as Pillow gives them.
    """
    data_config = {
        "input_size": (3, spec.image_size, spec.image_size),
        "mean": spec.mean,
        "std": spec.std,
        "interpolation": spec.interpolation,
        "crop_pct": crop_pct(spec.image_size, max(stored, spec.image_size), crop_share),
        "crop_mode": "center",
    }
    about: dict[str, Any] = {"label_names": list(classes), READING: {"upright": upright, "white": asdict(white)}}
    if layer_norm_eps is not None:
        about["layer_norm_eps"] = layer_norm_eps
    save_for_hf(module, str(folder), model_config=about, safe_serialization=True, data_config=data_config)


def crop_pct(image_size: int, stored: int, crop_share: float) -> float:
    """timm's way to say that the short side is resized to ``stored`` px: it takes the floor of image_size / crop_pct.

    ``crop_share`` itself where that is what it says, so that 0.875 stays 0.875.
    """
    candidates = (crop_share, image_size / stored, image_size / (stored + 0.5))
    return next(share for share in candidates if math.floor(image_size / share) == stored)


def _image_files(paths: Sequence[str | Path]) -> Iterator[Path]:
    for path in map(Path, paths):
        if path.is_dir():
            yield from (path / name for name in split_off_images(list_files(path))[0])
        else:
            yield path


def _is_image(path: Path) -> bool:
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except UNREADABLE:
        return False
