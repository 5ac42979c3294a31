"""What the files of this folder share: small models, images, and the definition in float64."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from unfreeze.components.mapping import block_modules
from unfreeze.config import ModelConfig
from unfreeze.data.pixels.crops import InputSpec
from unfreeze.data.pixels.decode import Squares, decode_files, make_array
from unfreeze.data.pixels.files import list_files
from unfreeze.data.pixels.part import Part
from unfreeze.models.build import build_model
from unfreeze.records import COMPONENTS, MODES

_REAL = Path(__file__).resolve().parents[3] / "shared" / "real"
_SPEC = InputSpec(32, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
_SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 4}
_STEP = 1e-5  # of the central difference that stands for the derivative


class RecordingPart(Part):
    """Remembers which images were taken, so that a test knows the pairs."""

    taken: list[np.ndarray]

    def take(self, positions: np.ndarray) -> np.ndarray:
        images = Part.take(self, positions)
        self.taken.append(images)
        return images


def _make_part(images: np.ndarray) -> RecordingPart:
    part = RecordingPart(make_array(images, np.zeros(len(images))), np.arange(len(images)))
    object.__setattr__(part, "taken", [])
    return part


def _random_images(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def _make_vit(**changes: Any) -> nn.Module:
    """With every tensor away from its special start (zero biases, unit gains, zero positions)."""
    torch.manual_seed(0)
    model = VisionTransformer(**{**_SMALL, **changes}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def _plain_rates(module: nn.Module, x_image: np.ndarray, y_image: np.ndarray) -> dict[str, np.ndarray]:
    """Mode → (blocks, components) of one pair, in float64; the derivative of ``local`` by a central difference."""
    model = copy.deepcopy(module).double().eval()
    blocks = list(block_modules(model))
    for parts in blocks:
        parts.mha.fused_attn = False
    with torch.no_grad():
        (seen_x, e_x), (seen_y, e_y) = (_walk(model, _pixels(image)) for image in (x_image, y_image))
        step = _STEP * (e_y - e_x)
        after, _ = _walk(model, _pixels(x_image), e_x + step)
        before, _ = _walk(model, _pixels(x_image), e_x - step)
        rates = {mode: np.zeros((len(blocks), len(COMPONENTS))) for mode in MODES}
        for index, parts in enumerate(blocks):
            fed = [_fed(parts, e) for e in (e_x, e_y)]
            for column, name in enumerate(COMPONENTS):
                key = (index, name)
                change = torch.linalg.norm(fed[0][name] - fed[1][name]) / torch.linalg.norm(e_x - e_y)
                rates["reference"][index, column] = change
                for mode, here, there in (("in_situ", seen_x, seen_y), ("local", before, after)):
                    d_in, d_out = (torch.linalg.norm(here[key][i] - there[key][i]) for i in (0, 1))
                    rates[mode][index, column] = d_out / d_in
    return rates


def _pixels(image: np.ndarray) -> Tensor:
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (_SPEC.mean, _SPEC.std))
    return torch.from_numpy((image.transpose(2, 0, 1) / 255 - mean) / std)[None]


def _fed(parts: Any, e: Tensor) -> dict[str, Tensor]:
    """Every component called on the embedding output; FC2 on the zero-padded one."""
    padded = torch.zeros(*e.shape[:-1], parts.fc2.in_features, dtype=e.dtype)
    padded[..., : e.shape[-1]] = e
    return {
        "ln1": parts.ln1(e),
        "mha": parts.mha(e),
        "ln2": parts.ln2(e),
        "fc1": torch.cat([layer(e) for layer in parts.fc1], dim=-1),
        "fc2": parts.fc2(padded),
    }


def _walk(model: nn.Module, pixels: Tensor, embedded: Tensor | None = None) -> tuple[dict, Tensor]:
    """(block, component) → (input, output) of one forward pass, from other tokens where given, and its embedding."""
    seen: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
    with contextlib.ExitStack() as hooks:

        def enter(_: nn.Module, args: tuple) -> tuple:
            tokens = args[0] if embedded is None else embedded
            seen[-1, "embed"] = (tokens, tokens)
            return (tokens, *args[1:])

        hooks.callback(model.blocks[0].register_forward_pre_hook(enter).remove)
        for index, parts in enumerate(block_modules(model)):
            for name in COMPONENTS:
                layer = parts.fc1[0] if name == "fc1" else getattr(parts, name)

                def record(_: nn.Module, args: tuple, output: Tensor, key: tuple = (index, name)) -> None:
                    seen[key] = (args[0], output)

                hooks.callback(layer.register_forward_hook(record).remove)
        model.forward_features(pixels)
    return seen, seen.pop((-1, "embed"))[0]


@pytest.fixture
def spec() -> InputSpec:
    return _SPEC


@pytest.fixture
def make_part() -> Callable[[np.ndarray], RecordingPart]:
    return _make_part


@pytest.fixture
def random_images() -> Callable[[int, int], np.ndarray]:
    return _random_images


@pytest.fixture
def make_vit() -> Callable[..., nn.Module]:
    return _make_vit


@pytest.fixture
def plain_rates() -> Callable[[nn.Module, np.ndarray, np.ndarray], dict[str, np.ndarray]]:
    return _plain_rates


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors here are too small to share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def deit_tiny() -> tuple[nn.Module, InputSpec, np.ndarray, np.ndarray]:
    """The real model, its input, and five photographs and five flowers: uint8 (5, 224, 224, 3)."""
    weights = _REAL / "weights" / "deit_tiny_patch16_224.safetensors"
    if not weights.is_file():
        pytest.skip(f"no real weights and images in {_REAL}")
    config = ModelConfig(name="deit_tiny_patch16_224", weights=str(weights))
    base = build_model(config, num_classes=12, cache_dir=Path("unused"))
    images = []
    for folder in (_REAL / "data" / "imagenet-samples", _REAL / "data" / "flowers12" / "test"):
        files = list_files(folder)[::40][:5]
        images.append(decode_files(folder, files, [0] * len(files), Squares(224)).images)
    return base.module, base.spec, *images
