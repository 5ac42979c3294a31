"""An export as `mlflow.pyfunc.load_model` gives it. The weights are safetensors, nothing is unpickled."""

import base64
import binascii
import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps

from unfreeze.data.pixels.grey import to_rgb
from unfreeze.data.pixels.reading import FORMATS, UNREADABLE
from unfreeze.errors import DataError
from unfreeze.models.export import Exported

if TYPE_CHECKING:
    import pandas as pd

_BATCH_SIZE = 64


class ServedModel:
    """What MLflow calls: images in, a row for each out."""

    def __init__(self, exported: Exported) -> None:
        self._exported = exported

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> "pd.DataFrame":
        """``class``, ``probability`` and ``probabilities`` (class → probability) of each image.

        ``model_input``: the bytes of an image file, the same in base64 as JSON carries them, a PIL image or an array of
        uint8 (H, W, 3); a list, a series, or the first column of a table of those; or uint8 (N, H, W, 3).

        Raises:
            DataError: something is no image; says which.
        """
        import pandas as pd

        items = list(_each(model_input))
        if not items:
            raise DataError("no images to predict")
        images = [self._read(item, position) for position, item in enumerate(items)]
        logits = self._exported.logits(len(images), images.__getitem__, batch_size=_BATCH_SIZE)
        rows = logits.softmax(1).tolist()
        classes = self._exported.classes
        best = [max(range(len(row)), key=row.__getitem__) for row in rows]
        return pd.DataFrame(
            {
                "class": [classes[index] for index in best],
                "probability": [row[index] for row, index in zip(rows, best, strict=True)],
                "probabilities": [dict(zip(classes, row, strict=True)) for row in rows],
            }
        )

    def _read(self, item: Any, position: int) -> Image.Image:
        try:
            image = _open(item)
            turned = ImageOps.exif_transpose(image) if self._exported.upright else image
            return to_rgb(turned, self._exported.white)
        except (*UNREADABLE, DataError) as error:
            raise DataError(f"input {position} cannot be read as an image: {error}") from error


def _load_pyfunc(path: str) -> ServedModel:
    """MLflow's name for what makes the model of the folder ``path``."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return ServedModel(Exported.open(Path(path), device))


def _each(model_input: Any) -> Iterable[Any]:
    if isinstance(model_input, bytes | bytearray | str | Image.Image):
        return [model_input]
    if isinstance(model_input, np.ndarray) and model_input.dtype != object and model_input.ndim == 3:
        return [model_input]
    return model_input.iloc[:, 0] if hasattr(model_input, "columns") else model_input


def _open(item: Any) -> Image.Image:
    if isinstance(item, Image.Image):
        return item
    if isinstance(item, str):
        try:
            item = base64.b64decode("".join(item.split()), validate=True)
        except binascii.Error as error:
            raise DataError(f"text must be an image file in base64, but got {item[:40]!r}") from error
    if isinstance(item, bytes | bytearray):
        image = Image.open(io.BytesIO(item), formats=FORMATS)
        image.load()
        return image
    array = np.asarray(item)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        raise DataError(f"an array must be uint8 (H, W, 3), but got {array.dtype} {array.shape}")
    return Image.fromarray(array)
