"""Freezing: which tensors take gradients. Speaks of what is unfrozen, never of a list of frozen things."""

from torch import nn

from unfreeze.components.mapping import group_parameters, is_adapter
from unfreeze.components.selection import Selection
from unfreeze.errors import SelectionError


def unfreeze_only(model: nn.Module, selection: Selection, *, train_head: bool) -> list[str]:
    """Train exactly the selection (and the head); returns the trained parameters' names, in model order.

    Of a group that LoRA adapts, the adapters alone; `finetune.lora` puts them in before.

    All gradient buffers go: a selection change leaves no memory behind, and a trial that broke off between two
    micro-batches no gradient that the next one's first step would add to.

    Raises:
        SelectionError: the selection was made for another depth, its adapters are not in the model, or nothing at all
            would be trained.
    """
    groups = group_parameters(model)
    num_blocks = len(model.blocks)  # type: ignore[arg-type]
    if selection.num_blocks != num_blocks:
        raise SelectionError(f"{selection} was written for {selection.num_blocks} blocks, the model has {num_blocks}")
    wanted = selection.groups | ({"head"} if train_head else frozenset())
    trained = {name for group in wanted for name in groups.get(group, ())}
    adapters = {group: [name for name in groups[group] if is_adapter(name)] for group in selection.ranks}
    if lacking := [group for group, names in adapters.items() if not names]:
        raise SelectionError(
            f"selection {str(selection)!r} trains adapters that the model does not hold in {', '.join(lacking)}; "
            f"finetuning puts them in (finetune.lora.inject_adapters)"
        )
    trained |= {name for names in adapters.values() for name in names}
    if not trained:
        raise SelectionError(f"selection {str(selection)!r} with finetune.train_head=false trains nothing")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
        parameter.grad = None
    return [name for name, _ in model.named_parameters() if name in trained]
