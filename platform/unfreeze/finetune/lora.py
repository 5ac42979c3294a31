"""LoRA (Hu et al. 2021, arXiv 2106.09685) on chosen components through `peft`: put in, merged, taken out again.

A linear layer W becomes W + (alpha / rank) B A, with W frozen. `peft`, 5 s of CPU to import, is imported where a
selection asks for it.
"""

import math
import re

import torch
from torch import nn

from unfreeze.components.mapping import adaptable_linears
from unfreeze.components.selection import Selection, check_lora
from unfreeze.errors import SelectionError
from unfreeze.seeding import derive_seed

_ADAPTER = "default"  # peft's name for the only adapter; part of the parameters' names


def inject_adapters(module: nn.Module, selection: Selection, *, seed: int, lora_alpha: float) -> None:
    """Put fresh adapters into the linear layers that ``selection`` adapts; nothing where it has no LoRA terms.

    A is uniform (as a fresh `nn.Linear`), the same for the same seed and layer on every device and whatever else is
    adapted; B is 0, so the model computes what it did before.

    Raises:
        SelectionError: peft is not installed, there is nothing to adapt, or a rank exceeds a layer's smaller side.
    """
    if not selection.lora:
        return
    check_lora(selection, width=module.embed_dim)  # type: ignore[arg-type]
    ranks = _ranks_by_layer(module, selection)
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        target_modules=list(ranks),
        rank_pattern={f"^{re.escape(name)}": rank for name, rank in ranks.items()},
        lora_alpha=lora_alpha,
    )
    with torch.random.fork_rng(devices=[]):  # peft draws an A of its own
        inject_adapter_in_model(config, module, adapter_name=_ADAPTER)
    for name in ranks:
        generator = torch.Generator().manual_seed(derive_seed(seed, "lora", name))
        weight = module.get_submodule(f"{name}.lora_A.{_ADAPTER}").weight
        fresh = nn.init.kaiming_uniform_(torch.empty(weight.shape), a=math.sqrt(5), generator=generator)  # type: ignore[arg-type]
        with torch.no_grad():
            weight.copy_(fresh)  # type: ignore[operator]


def merge_adapters(module: nn.Module) -> None:
    """Add the adapters to the weights they adapt, and take them out: a plain timm model that computes the same."""
    for _, layer in _adapted_layers(module):
        layer.merge()  # type: ignore[operator]
    remove_adapters(module)


def remove_adapters(module: nn.Module) -> None:
    """The base layers back in their places, every parameter under its own name."""
    for name, layer in _adapted_layers(module):
        module.set_submodule(name, layer.base_layer)  # type: ignore[arg-type]
    if hasattr(module, "peft_config"):  # peft takes it for adapters that are still there
        del module.peft_config


def _ranks_by_layer(module: nn.Module, selection: Selection) -> dict[str, int]:
    linears = adaptable_linears(module)
    ranks: dict[str, int] = {}
    for group, rank in selection.ranks.items():
        if group not in linears:
            there = "none" if not linears else ", ".join(sorted({name.split(".")[1] for name in linears}))
            raise SelectionError(
                f"{type(module).__name__} has no linear layer that LoRA can adapt in {group}, which selection "
                f"{str(selection)!r} asks for; adaptable here: {there}"
            )
        for name in linears[group]:
            smaller = min(module.get_submodule(name).weight.shape)  # type: ignore[arg-type]
            if rank > smaller:
                raise SelectionError(
                    f"selection {str(selection)!r}: rank {rank} exceeds what {name} can use; choose 1 to {smaller}"
                )
            ranks[name] = rank
    return ranks


def _adapted_layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, layer) for name, layer in module.named_modules() if hasattr(layer, "lora_A")]
