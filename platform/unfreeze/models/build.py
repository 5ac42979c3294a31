"""Building the base model: any supported timm Vision Transformer, its weights, and what the driver must know of it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_model_config_from_hf
from timm.models._factory import parse_model_name
from timm.models._hub import load_model_config_from_path
from timm.models._pretrained import PretrainedCfg
from torch import Tensor, nn

from unfreeze.components.mapping import check_supported, count_parameters, lora_sizes
from unfreeze.components.structure import is_divisible, is_plain, reads_first_token
from unfreeze.config import Config, ModelConfig
from unfreeze.data.pixels.crops import InputSpec
from unfreeze.errors import ModelError
from unfreeze.models import tiny
from unfreeze.models.hub import check_hub
from unfreeze.models.names import say_unknown
from unfreeze.models.weights import fitting_weights
from unfreeze.records import ModelFacts
from unfreeze.seeding import derive_seed

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HEAD_STD = 0.02  # of the fresh classifier's weights, truncated normal, as Hugging Face's ViT has it


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A model with pretrained weights and a classifier that `init_classifier` still has to fill."""

    module: nn.Module
    spec: InputSpec
    facts: ModelFacts
    classifier: tuple[str, ...]  # parameter names


def build_base(config: Config, *, num_classes: int) -> BaseModel:
    """The model that ``config`` names, for its data; what everyone who trains, measures or evaluates it calls.

    Raises:
        ModelError: as `build_model`.
    """
    cache_dir, interpolation = Path(config.data.cache_dir).expanduser(), config.data.interpolation
    return build_model(config.model, num_classes=num_classes, cache_dir=cache_dir, interpolation=interpolation)


def build_model(config: ModelConfig, *, num_classes: int, cache_dir: Path, interpolation: str = "bicubic") -> BaseModel:
    """Create the timm model and load its weights, strictly: every tensor but the classifier's must fit.

    ``interpolation``: of evaluation views, see `DataConfig`.

    Raises:
        ModelError: unknown or unsupported model, weights missing or not fitting.
    """
    kwargs = create_kwargs(config)
    pretrained = config.weights is None and config.name != tiny.unfreeze_tiny.__name__
    if pretrained:
        check_hub(config.name)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # weights: random must be the same on every worker
            module = timm.create_model(config.name, pretrained=pretrained, num_classes=num_classes, **kwargs)
    except Exception as error:  # timm raises all kinds for an unknown name, a bad keyword or a failed download
        raise ModelError(_explain_create(config, error)) from error
    check_supported(module)
    cfg, classifier = module.pretrained_cfg, classifier_of(module)
    if not pretrained and config.weights != "random":
        location = str(tiny.tiny_weights_path()) if config.weights is None else config.weights
        state = fitting_weights(
            module,
            location,
            cache_dir=cache_dir,
            classifier=classifier,
            resample_patches=config.resample_patches,
        )
        module.load_state_dict(state, strict=False)
    _check_finite(module)
    if config.layer_norm_eps is not None:
        for layer in module.modules():
            if isinstance(layer, nn.LayerNorm):
                layer.eps = config.layer_norm_eps
    module.eval()
    image_size = input_size(config)
    try_out(module, image_size, num_classes, config)
    plain = is_divisible(module) and all(is_plain(block) for block in module.blocks)
    facts = ModelFacts(
        name=config.name,
        digest=weights_digest(module, leave_out=classifier),
        num_blocks=len(module.blocks),
        parameters=count_parameters(module),
        image_size=image_size,
        create_kwargs={**kwargs, "num_classes": num_classes},
        num_tokens=module.patch_embed.num_patches + module.num_prefix_tokens,
        width=module.embed_dim,
        plain=plain,
        first_token=plain and reads_first_token(module),
        lora_sizes=lora_sizes(module),
    )
    mean, std = (cfg["mean"], cfg["std"]) if config.normalization == "model" else (IMAGENET_MEAN, IMAGENET_STD)
    return BaseModel(module, InputSpec(image_size, tuple(mean), tuple(std), interpolation), facts, classifier)


def create_kwargs(config: ModelConfig) -> dict[str, Any]:
    """What timm.create_model is given besides name, weights and number of classes."""
    return dict(config.kwargs) | ({} if config.image_size is None else {"img_size": config.image_size})


def classifier_of(module: nn.Module) -> tuple[str, ...]:
    """Names of the parameters of a timm model's classifiers; a distilled one has two."""
    names = module.pretrained_cfg["classifier"]  # type: ignore[index]
    modules = names if isinstance(names, (tuple, list)) else (names,)
    return tuple(name for name, _ in module.named_parameters() if name.rpartition(".")[0] in modules)


def input_size(config: ModelConfig) -> int:
    """Side of the model's input in px, known without building it.

    Raises:
        ModelError: timm knows no such model.
    """
    if "img_size" in config.kwargs:
        raise ModelError(
            f"the input's side is model.image_size, but got model.kwargs.img_size={config.kwargs['img_size']}"
        )
    if config.image_size is not None:
        return config.image_size
    try:
        source, name = parse_model_name(config.name)
        if source is None:
            return timm.get_pretrained_cfg(name, allow_unregistered=False).input_size[-1]
        check_hub(config.name)
        read = load_model_config_from_path if source == "local-dir" else load_model_config_from_hf
        pretrained_cfg, _, arguments = read(name)
    except ModelError:
        raise
    except Exception as error:  # an unknown name, no such folder, a config.json of another library, no network
        raise ModelError(_explain_create(config, error)) from error
    size = arguments.get("img_size", pretrained_cfg.get("input_size", PretrainedCfg.input_size)[-1])
    return size if isinstance(size, int) else size[-1]


def init_classifier(
    module: nn.Module, names: tuple[str, ...], *, seed: int, place: Callable[[Tensor, Tensor], Tensor] | None = None
) -> None:
    """A fresh classifier, the same for the same seed on every device: biases 0, weights truncated normal.

    ``place``: makes of a full tensor one that can be copied into a parameter that is not whole here.
    """
    parameters = dict(module.named_parameters())
    for name in names:
        generator = torch.Generator().manual_seed(derive_seed(seed, "classifier", name))
        fresh = torch.zeros(parameters[name].shape)
        if fresh.ndim > 1:
            nn.init.trunc_normal_(fresh, std=_HEAD_STD, generator=generator)
        with torch.no_grad():
            parameters[name].copy_(place(fresh, parameters[name]) if place is not None else fresh)


def weights_digest(module: nn.Module, *, leave_out: tuple[str, ...] = ()) -> str:
    """sha256 over names, shapes and values of the parameters, classifier left out: which base model this is."""
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        if name not in leave_out:
            digest.update(f"{name}{tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check_finite(module: nn.Module) -> None:
    broken = [name for name, value in module.named_parameters() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ModelError(f"the weights hold NaN or infinity in {', '.join(broken)}")


def _explain_create(config: ModelConfig, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    if ":" not in config.name and not timm.is_model(config.name):
        return say_unknown(config.name)
    asked = f"model.name={config.name!r} with {config.kwargs} and weights={config.weights!r}"
    return f"timm could not create {asked}: {reason}"


def try_out(module: nn.Module, image_size: int, num_classes: int, config: ModelConfig) -> None:
    """One image through the model, past all blocks but the first: what does not fit shows here, not in the first trial.

    Raises:
        ModelError: its answer is not one number for each class, or it gives none.
    """
    patch = module.patch_embed.patch_size[-1]  # type: ignore[union-attr, index]
    if image_size % patch:
        below = image_size - image_size % patch
        raise ModelError(
            f"model.image_size={image_size} is no multiple of the patch of {config.name}, {patch} px: its edge would "
            f"never be seen; choose {f'{below} or ' if below else ''}{below + patch}"
        )
    asked = f"model.name={config.name} with model.kwargs={config.kwargs}"
    blocks = module.blocks
    try:
        module.blocks = blocks[:1]  # type: ignore[index]
        with torch.no_grad():
            shape = tuple(module(torch.zeros(1, 3, image_size, image_size)).shape)
    except Exception as error:  # whatever a keyword of the model's makes of it
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{asked} cannot take an RGB image of {image_size} px: {reason}") from error
    finally:
        module.blocks = blocks
    if shape != (1, num_classes):
        raise ModelError(f"{asked} gives {shape} for an image and {num_classes} classes, not {(1, num_classes)}")


def parameter_dict(module: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """The named parameters, in the given order."""
    parameters = dict(module.named_parameters())
    return {name: parameters[name] for name in names}
