"""Weights of any common layout into a timm model, strictly: every tensor but the classifier's must be there and fit."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unfreeze.errors import ModelError
from unfreeze.models.filekind import local_file
from unfreeze.models.layouts import to_timm
from unfreeze.models.weightfile import read_weights

_PATCHES = "patch_embed.proj.weight"


def fitting_weights(
    module: nn.Module, location: str, *, cache_dir: Path, classifier: tuple[str, ...], resample_patches: bool
) -> dict[str, Tensor]:
    """What a file, local or ``s3://``, holds for ``module``: float32, by timm's names, classifier left out.

    Position embeddings are resampled to its input's size, patches where that is asked for. ``classifier``: names of
    parameters.

    Raises:
        ModelError: begins with what the file holds, and says what does not fit.
    """
    path, tensors = open_weights(location, cache_dir)
    try:
        state: dict[str, Any] = to_timm(tensors, module)
    except ModelError as error:
        raise ModelError(f"{path} holds {describe(tensors)}: {error}") from error
    about, model = describe(state), type(module).__name__
    _check_distilled(path, state, module, about)
    _check_patches(path, state, module, about, resample_patches=resample_patches)
    # Each timm model file translates foreign checkpoints and resamples position embeddings by a function of this name.
    translate = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if translate is not None:
        try:
            state = translate(state, module)
        except Exception as error:  # a foreign file can fail in as many ways as there are layouts
            where = _positions(state, module)
            raise ModelError(f"{path} holds {about}; these do not fit {model}: {where}{_one_line(error)}") from error
    state = {name: value.float() for name, value in state.items() if name not in classifier}
    expected = {name: value for name, value in module.state_dict().items() if name not in classifier}
    heads = {name.rpartition(".")[0] for name in classifier}  # their biases may have no counterpart here
    problems = [f"missing {name}" for name in expected if name not in state]
    problems += [
        f"unexpected {name}" for name in state if name not in expected and name.rpartition(".")[0] not in heads
    ]
    problems += [
        f"{name} is {tuple(state[name].shape)}, the model's {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if problems:
        listing = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ModelError(f"{path} holds {about}; these do not fit {model}: {listing}")
    broken = [name for name in expected if not bool(torch.isfinite(state[name]).all())]
    if broken:
        raise ModelError(f"{path} holds {about}, with NaN or infinity in {', '.join(broken)}")
    return {name: state[name] for name in expected}


def open_weights(location: str, cache_dir: Path) -> tuple[Path, dict[str, Tensor]]:
    """The file, here, and the tensors that it holds under whatever names.

    Raises:
        ModelError: it is no file of weights, or its tensors hold no values.
    """
    path = local_file(location, cache_dir)
    tensors = read_weights(path, lambda name: local_file(f"{location.rpartition('/')[0]}/{name}", cache_dir))
    _check_values(path, tensors)
    return path, tensors


def describe(tensors: Mapping[str, Tensor]) -> str:
    """What a file holds, in words: ``152 tensors, a ViT of 12 blocks, width 192, patches of 16 px``."""
    count = f"{len(tensors)} tensor{'s' if len(tensors) != 1 else ''}"
    blocks = {match[1] for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))}
    if not blocks:
        return f"{count}, {_names(list(tensors))}"
    norm, patches = tensors.get("blocks.0.norm1.weight"), tensors.get(_PATCHES)
    parts = [f"a {'distilled ' if 'dist_token' in tensors else ''}ViT of {len(blocks)} blocks"]
    if norm is not None:
        parts.append(f"width {norm.numel()}")
    if patches is not None and patches.ndim == 4:
        parts.append(f"patches of {patches.shape[-1]} px")
    return f"{count}, {', '.join(parts)}"


def _names(names: list[str]) -> str:
    return ("such as " if len(names) > 3 else "") + ", ".join(names[:3])


def _check_values(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that hold no values, or none that can be trained."""
    kinds = {
        "without values (on the meta device); save the model after it was filled": lambda value: value.is_meta,
        "that are sparse; save them by .to_dense()": lambda value: value.layout is not torch.strided,
        "that are quantized; give the float weights": lambda value: value.is_quantized,
        "of complex numbers, which no Vision Transformer has": lambda value: value.is_complex(),
        "of integers, as quantized models have; give the float weights": lambda value: (
            not value.is_floating_point() and value.ndim > 0
        ),
    }
    for what, is_so in kinds.items():
        names = [name for name, value in tensors.items() if is_so(value) and not _is_index(name)]
        if names:
            raise ModelError(f"{path} holds tensors {what}: {len(names)} of {len(tensors)}, {_names(names)}")


def _is_index(name: str) -> bool:
    """BEiT's buffer of table rows, and other counters that no weight is."""
    return name.endswith(("relative_position_index", "num_batches_tracked", "position_ids"))


def _check_distilled(path: Path, state: Mapping[str, Tensor], module: nn.Module, about: str) -> None:
    there, wanted = "dist_token" in state, getattr(module, "dist_token", None) is not None
    if there != wanted and any(name.startswith("blocks.") for name in state):
        other = "has none; choose a _distilled_ model.name" if there else "has one; choose a model.name without it"
        raise ModelError(
            f"{path} holds {about}, {'with' if there else 'without'} a distillation token, and {type(module).__name__} "
            f"{other}"
        )


def _check_patches(
    path: Path, state: Mapping[str, Tensor], module: nn.Module, about: str, *, resample_patches: bool
) -> None:
    file, own = state.get(_PATCHES), dict(module.named_parameters()).get(_PATCHES)
    if file is None or own is None or file.ndim != 4 or file.shape[-2:] == own.shape[-2:] or resample_patches:
        return
    raise ModelError(
        f"{path} holds {about}, but the model's patches are {own.shape[-1]} px wide; model.resample_patches=true "
        f"resamples them, which changes what the model knows; or choose a model.name of {file.shape[-1]} px"
    )


def _positions(state: Mapping[str, Tensor], module: nn.Module) -> str:
    """The likely cause where resampling fails: a class token more or less."""
    file, own = state.get("pos_embed"), dict(module.named_parameters()).get("pos_embed")
    return "" if file is None or own is None else f"pos_embed is {tuple(file.shape)}, the model's {tuple(own.shape)}; "


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
