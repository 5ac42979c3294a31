"""A model that stays on the device between trials; only what the last trial changed is put back."""

import torch
from torch import nn

from unfreeze.components.freeze import unfreeze_only
from unfreeze.components.selection import Selection, parse_selection
from unfreeze.errors import SelectionError
from unfreeze.finetune.depth import DropPaths
from unfreeze.finetune.lora import inject_adapters, remove_adapters
from unfreeze.finetune.shard import is_sharded, shard_model, share
from unfreeze.models.build import BaseModel, init_classifier


class WarmModel:
    """A base model on ``device``, ready for one trial after another.

    ``shard``: spread over the workers of the trial, each of which makes one of these at the same time.
    """

    def __init__(self, base: BaseModel, device: torch.device, *, shard: bool = False) -> None:
        self.base = base
        self.device = device
        self.module: nn.Module = base.module
        self.paths = DropPaths(self.module)
        if shard:
            shard_model(self.module, device)
        else:
            self.module.to(device)
        # Kept on the device: restoring is a copy at memory speed, and a trial changes at most all of it.
        self._originals = {name: value.detach().clone() for name, value in self.module.named_parameters()}
        self._changed: list[str] = []
        self.fitting: dict[str, int] = {}  # selection → the micro-batch that fits, where the configured one did not

    def prepare(
        self, selection_text: str, *, seed: int, train_head: bool, lora_alpha: float = 16.0
    ) -> tuple[Selection, list[str]]:
        """Back to the base weights, a fresh classifier, fresh adapters for LoRA, gradients for the selection alone.

        Returns the selection and the trained parameters' names. The classifier is fresh even where the head is not
        trained: no trial may see another's.

        Raises:
            SelectionError: it cannot be read, or asks for what the model does not have.
        """
        remove_adapters(self.module)
        self.paths.rest()
        parameters = dict(self.module.named_parameters())
        with torch.no_grad():
            for name in self._changed:
                if name in self._originals:  # the last trial's adapters are gone
                    parameters[name].copy_(self._originals[name])
        selection = parse_selection(selection_text, num_blocks=self.base.facts.num_blocks)
        if selection.lora and is_sharded(self.module):
            raise SelectionError(
                f"LoRA adapts whole layers, but finetune.shard=true spreads them over workers: {selection_text!r} "
                f"needs finetune.shard=false"
            )
        inject_adapters(self.module, selection, seed=seed, lora_alpha=lora_alpha)
        names = unfreeze_only(self.module, selection, train_head=train_head)
        init_classifier(self.module, self.base.classifier, seed=seed, place=share)
        self._changed = list(dict.fromkeys([*names, *self.base.classifier]))
        return selection, names

    @property
    def changed(self) -> list[str]:
        """Parameters that differ from the base since `prepare`: the trained ones, adapters too, and the classifier."""
        return self._changed
