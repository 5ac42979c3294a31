"""`unfreeze` from a notebook: measure a model at hand, unfreeze a selection of it, use what a sweep exported.

No Ray, no sweep, no ledger.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from unfreeze.components.freeze import unfreeze_only
from unfreeze.components.mapping import check_supported
from unfreeze.components.selection import parse_selection
from unfreeze.config import DataConfig, PlasticityConfig
from unfreeze.data.pixels.crops import InputSpec
from unfreeze.data.pixels.decode import Squares, decode_files, decode_sequence, stored_side
from unfreeze.data.pixels.files import list_files, split_off_images
from unfreeze.data.pixels.part import Part
from unfreeze.data.pixels.reading import check_bad_files
from unfreeze.data.sets.stage import cache_dir, local_tree
from unfreeze.errors import ConfigError, DataError, ModelError
from unfreeze.load import load_config
from unfreeze.models.build import weights_digest
from unfreeze.models.export import Exported
from unfreeze.plasticity.estimator import check_device
from unfreeze.plasticity.local import measure_plasticity
from unfreeze.records import COMPONENTS, PlasticityTable
from unfreeze.report.notebook import plot_by_block
from unfreeze.report.plasticity import terminal_plasticity
from unfreeze.report.streams import watch
from unfreeze.seeding import derive_seed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# A folder of images, uint8 (N, H, W, 3), or a sequence of PIL images or of (PIL image, anything) as data sets give.
Images = str | Path | np.ndarray | Sequence[Any]


@dataclass(frozen=True, slots=True)
class Plasticity:
    """What `measure` found. Prints as a table; ``table`` holds every row, ranking and bound."""

    table: PlasticityTable

    def __str__(self) -> str:
        return terminal_plasticity(self.table)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """As a notebook shows it: the means over blocks, with their intervals."""
        means = self.to_pandas().query("block.isna()")
        texts = means.apply("{0[mean]:.3f} [{0[low]:.3f}, {0[high]:.3f}]".format, axis="columns")
        wide = means.assign(text=texts).pivot(index="component", columns="mode", values="text")
        return wide.reindex(COMPONENTS).reindex(columns=self.table.modes).rename_axis(columns="plasticity").to_html()

    def to_pandas(self) -> "pd.DataFrame":
        """One row per mode, component and block; ``block`` is <NA> for the mean over blocks."""
        import pandas as pd

        rows = [{name: getattr(row, name) for name in row.__slots__ if name != "quantiles"} for row in self.table.rows]
        return pd.DataFrame(rows).astype({"block": "Int64"})

    def plot(self) -> "Figure":
        """Plasticity over depth, a panel per mode and a line per component, with the band of its interval."""
        return plot_by_block(self.table, self.table.modes)


def measure(
    model: nn.Module, source: Images, target: Images, *, mode: str | Sequence[str] = "reference", **settings: Any
) -> Plasticity:
    """Plasticity of every component of a timm Vision Transformer, on the device the model is on.

    ``source``: images like those the model was pretrained on; ``target``: those it is to be finetuned on. Both are
    brought to the model's input size as in evaluation (short side resized, centre cropped), whatever their own.
    ``mode``: ``reference``, ``in_situ``, ``local`` or several. ``settings``: any other option of `PlasticityConfig`,
    ``num_pairs=512`` and ``stop_early=True`` unless told otherwise. The model is left as it was.

    Raises:
        ConfigError: an unknown option or a value out of range.
        ModelError: unsupported, or a component's weights or output are NaN or infinite.
        DataError: no images, or too few.
    """
    config = _config([mode] if isinstance(mode, str) else list(mode), settings)
    check_supported(model)
    spec = _input_spec(model)
    device = next(model.parameters()).device
    check_device(device, config)
    with torch.inference_mode(False), _as_it_was(model):  # derivatives, which `local` takes, need it off
        table = measure_plasticity(
            model,
            spec,
            _load(source, "source", spec, config),
            _load(target, "target", spec, config),
            config,
            device=device,
            model_digest=weights_digest(model),
            watch=lambda batches, total: watch(batches, total=total, what="plasticity, batches at most"),
        )
    return Plasticity(table)


def load(path: str | Path, *, device: str | torch.device | None = None) -> Exported:
    """The model that a sweep exported, with its preprocessing: ``load("runs/demo/export").predict("photos/")``.

    ``path``: the folder, local or ``s3://``. ``device`` None: a GPU where there is one. In float32, as it was tested.

    Raises:
        ModelError: there is no export, or it is damaged.
        DataError: nothing is at the ``s3://`` address.
    """
    folder = str(path)
    if folder.startswith("s3://"):
        folder = str(local_tree(folder, cache_dir=cache_dir(DataConfig())))
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Exported.open(Path(folder).expanduser(), torch.device(chosen))


def unfreeze(model: nn.Module, selection: str, *, train_head: bool = True) -> list[str]:
    """Let exactly the selection (and the head) take gradients; returns the trained parameters' names.

    ``selection`` as everywhere: ``mha``, ``mha@6-11+fc1``, ``all``, ``none``.

    Raises:
        ModelError: unsupported.
        SelectionError: cannot be read, or names what the model does not have.
    """
    check_supported(model)
    return unfreeze_only(model, parse_selection(selection, num_blocks=len(model.blocks)), train_head=train_head)  # type: ignore[arg-type]


def _config(modes: list[str], settings: dict[str, Any]) -> PlasticityConfig:
    foreign = {"modes", "scores", "score_images", "num_actors"} & settings.keys()
    if foreign:
        raise ConfigError(
            f"measure does not take {', '.join(sorted(foreign))}: modes are `mode`; rival scores and actors are for "
            f"sweeps/plasticity.py"
        )
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in settings.items()}
    try:
        # No prior, which would have the pre-pass measure what it is made of.
        raw = {"plasticity": {**plain, "modes": modes}, "search": {"prior": {"score": "uniform"}}}
        return load_config(raw).plasticity
    except TypeError as error:
        raise ConfigError(f"settings of measure are numbers, texts and None, but got {settings}: {error}") from error


def _input_spec(model: nn.Module) -> InputSpec:
    cfg, size = getattr(model, "pretrained_cfg", None), getattr(getattr(model, "patch_embed", None), "img_size", None)
    if not cfg or "mean" not in cfg or "std" not in cfg or size is None or size[0] != size[1]:
        raise ModelError(
            f"{type(model).__name__} does not say how it wants its input (pretrained_cfg with mean and std, a square "
            f"patch_embed.img_size), as timm's models do"
        )
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if dtypes != {torch.float32}:
        raise ModelError(f"plasticity is measured in float32, but the model has {dtypes}; call model.float() before")
    return InputSpec(size[0], tuple(cfg["mean"]), tuple(cfg["std"]))


def _load(images: Images, role: str, spec: InputSpec, config: PlasticityConfig) -> Part:
    """At most as many images as can be in a pair, chosen by seed; reading the rest would be for nothing."""
    size = stored_side(spec.image_size, DataConfig().crop_share)

    def choose(count: int) -> list[int]:
        order = np.random.default_rng(derive_seed(config.seed, "library", role)).permutation(count)
        return sorted(order[: config.num_pairs].tolist())

    if isinstance(images, (str, Path)):
        root = Path(images).expanduser()
        if not root.is_dir():
            raise DataError(f"{role} must be a folder of images, an array or a sequence, but got {str(images)!r}")
        files, _ = split_off_images(list_files(root))
        chosen = [files[index] for index in choose(len(files))]
        array = decode_files(root, chosen, [0] * len(chosen), Squares(size))
        check_bad_files(array, root, max_bad_share=1.0)
        return Part(array, np.arange(len(array)))
    if isinstance(images, np.ndarray) and (images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3):
        raise DataError(f"{role} must be uint8 (N, H, W, 3), but got {images.dtype} {images.shape}")
    if not hasattr(images, "__len__") or not hasattr(images, "__getitem__"):
        raise DataError(f"{role} must be a folder, an array or a sequence of images, but got {type(images).__name__}")
    if not len(images):
        raise DataError(f"{role} holds no images")
    array = decode_sequence(_Chosen(images, choose(len(images)), role), Squares(size))
    return Part(array, np.arange(len(array)))


@dataclass(frozen=True, slots=True)
class _Chosen(Sequence[tuple[Image.Image, int]]):
    """Some of the images at hand, each with a label that nobody reads."""

    images: Sequence[Any] | np.ndarray
    indices: list[int]
    role: str

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: Any) -> Any:
        return _as_image(self.images[self.indices[place]], self.role), 0


def _as_image(item: Any, role: str) -> Image.Image:
    image = item[0] if isinstance(item, tuple) else item
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] == 3:
        return Image.fromarray(image)
    what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise DataError(f"{role} must hold PIL images, uint8 arrays (H, W, 3) or (image, label) pairs, but got {what}")


@contextlib.contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Training mode given back, submodule by submodule: some may have been in evaluation mode on purpose."""
    training = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
