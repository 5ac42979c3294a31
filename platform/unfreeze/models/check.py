"""What is wrong with a model, known before its weights are fetched or anything is started: by shapes alone."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import timm
import torch
from torch import nn

from unfreeze.components.mapping import check_supported
from unfreeze.components.selection import check_lora, parse_selection
from unfreeze.config import ModelConfig
from unfreeze.errors import ModelError, SelectionError
from unfreeze.models.build import build_model, classifier_of, create_kwargs, input_size, try_out
from unfreeze.models.weights import fitting_weights, open_weights


def model_problems(config: ModelConfig, selections: list[str], *, cache_dir: Path) -> Iterator[str]:
    """A line for each; weights are looked at where they are a local file, and selections where there is a model."""
    module = None
    try:
        module = _shapes_of(config, cache_dir)
    except ModelError as error:
        yield str(error)
    if config.weights not in (None, "random") and "://" not in config.weights:
        try:
            if module is None:
                open_weights(config.weights, cache_dir)
            else:
                fitting_weights(
                    module,
                    config.weights,
                    cache_dir=cache_dir,
                    classifier=classifier_of(module),
                    resample_patches=config.resample_patches,
                )
        except ModelError as error:
            yield str(error)
    if module is None:
        return
    for text in dict.fromkeys(selections):
        try:
            selection = parse_selection(text, num_blocks=len(module.blocks))  # type: ignore[arg-type]
            check_lora(selection, width=module.embed_dim)  # type: ignore[arg-type]
        except SelectionError as error:
            yield str(error)


def _shapes_of(config: ModelConfig, cache_dir: Path) -> nn.Module:
    """The model without values, which takes no time however large it is; with random ones where that cannot be had.

    Raises:
        ModelError: as `build_model`.
    """
    size = input_size(config)
    try:
        with torch.device("meta"):
            module = timm.create_model(config.name, pretrained=False, num_classes=2, **create_kwargs(config)).eval()
            check_supported(module)
            try_out(module, size, 2, config)
    except Exception:  # an operation that needs values, or what `build_model` puts in words
        return build_model(replace(config, weights="random"), num_classes=2, cache_dir=cache_dir).module
    return module
