"""Delta checkpoints: what a trial changed, its optimizer state and position, as safetensors. Nothing is unpickled."""

import base64
import hashlib
import json
import math
import zlib
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from unfreeze.components.mapping import group_of
from unfreeze.errors import CheckpointError
from unfreeze.finetune.shard import share
from unfreeze.models.build import parameter_dict
from unfreeze.records import TrialReport, TrialSpec, to_dict, trial_spec_from_dict

_PARAMETERS, _EMA, _OPTIMIZER = "parameters", "ema", "optimizer."


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A trial's state after ``step`` optimizer steps.

    Stored as one flat tensor of each kind: an entry in a safetensors header takes a hundred bytes, a large share of a
    norm. The reports are not stored here: they are in the trial's record.
    """

    spec: TrialSpec
    base_digest: str
    step: int
    reports: tuple[TrialReport, ...]  # all up to this step
    parameters: dict[str, Tensor]
    optimizer: dict[str, Tensor]  # "<parameter>.<key>"; empty in a checkpoint for export
    ema: dict[str, Tensor] = field(default_factory=dict)  # moving averages of the trained parameters

    def for_evaluation(self) -> "Checkpoint":
        """What was validated: averages in place of the weights they are of, nothing to go on from."""
        return replace(self, parameters=self.parameters | self.ema, optimizer={}, ema={})

    def snapshot(self) -> "Checkpoint":
        """A copy in host memory, which training does not touch."""
        kinds = (self.parameters, self.optimizer, self.ema)
        parameters, optimizer, ema = ({n: v.detach().to("cpu", copy=True) for n, v in kind.items()} for kind in kinds)
        return replace(self, parameters=parameters, optimizer=optimizer, ema=ema)

    @property
    def num_bytes(self) -> int:
        """Of its tensors; stored, it is a kilobyte more."""
        return sum(value.nbytes for values in self._by_kind().values() for value in values.values())

    def to_bytes(self) -> bytes:
        tensors = {kind: _flatten(values) for kind, values in self._by_kind().items()}
        meta = {
            "spec": to_dict(self.spec),
            "base_digest": self.base_digest,
            "step": self.step,
            "layout": {
                kind: [[n, list(v.shape)] for n, v in values.items()] for kind, values in self._by_kind().items()
            },
            "sha256": _digest(tensors),
        }
        packed = base64.b85encode(zlib.compress(json.dumps(meta, separators=(",", ":")).encode(), 9)).decode()
        return save_tensors(tensors, metadata={"unfreeze": packed})

    @staticmethod
    def from_bytes(data: bytes, *, base_digest: str) -> "Checkpoint":
        """Read a checkpoint made on the base model ``base_digest``; its reports are left to the trial's record.

        Raises:
            CheckpointError: damaged, or made on another base model.
        """
        try:
            tensors = load_tensors(data)
            # safetensors' loader drops the metadata; the header is 8 bytes of length, then JSON.
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            meta = json.loads(zlib.decompress(base64.b85decode(header["__metadata__"]["unfreeze"])))
            spec = trial_spec_from_dict(meta["spec"])
            step, made_on, sha256 = int(meta["step"]), str(meta["base_digest"]), meta["sha256"]
            kinds = {kind: _unflatten(tensors[kind], layout) for kind, layout in meta["layout"].items()}
        except (SafetensorError, zlib.error, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"the checkpoint is damaged ({error!r}); delete it to start over") from error
        if sha256 != _digest(tensors):  # safetensors has no checksum of its own
            raise CheckpointError("the checkpoint is damaged (its tensors changed); delete it to start over")
        if made_on != base_digest:
            raise CheckpointError(
                f"the checkpoint was made on base weights {made_on[:12]}…, this model's are "
                f"{base_digest[:12]}…; use the model and weights of its sweep"
            )
        optimizer = {
            f"{name}.{kind.removeprefix(_OPTIMIZER)}": value
            for kind, values in kinds.items()
            if kind.startswith(_OPTIMIZER)
            for name, value in values.items()
        }
        return Checkpoint(
            spec=spec,
            base_digest=made_on,
            step=step,
            reports=(),
            parameters=kinds.get(_PARAMETERS, {}),
            optimizer=optimizer,
            ema=kinds.get(_EMA, {}),
        )

    def _by_kind(self) -> dict[str, dict[str, Tensor]]:
        kinds: dict[str, dict[str, Tensor]] = {_PARAMETERS: self.parameters, _EMA: self.ema}
        for key, value in self.optimizer.items():
            name, _, entry = key.rpartition(".")
            kinds.setdefault(_OPTIMIZER + entry, {})[name] = value
        return {kind: values for kind, values in kinds.items() if values}


def _flatten(values: dict[str, Tensor]) -> Tensor:
    dtypes = {value.dtype for value in values.values()}
    assert len(dtypes) == 1, dtypes  # models are built in float32
    return torch.cat([value.detach().cpu().reshape(-1) for value in values.values()])


def _unflatten(flat: Tensor, layout: list[Any]) -> dict[str, Tensor]:
    parts = flat.split([math.prod(shape) for _, shape in layout])
    return {name: part.view(shape) for (name, shape), part in zip(layout, parts, strict=True)}


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """The optimizer's state by parameter name; ``names`` in the order the parameters were given to it."""
    state = optimizer.state_dict()["state"]
    return {
        f"{names[i]}.{key}": torch.as_tensor(value)
        for i, entry in state.items()
        for key, value in entry.items()
        if value is not None
    }


def restore(
    checkpoint: Checkpoint, module: nn.Module, optimizer: torch.optim.Optimizer | None, names: list[str]
) -> None:
    """Put a checkpoint's tensors back. ``optimizer`` None: weights alone, for evaluation and export.

    ``names``: the parameters that ``optimizer`` trains, in its order.

    Raises:
        CheckpointError: it holds other parameters than the model has or trains, or of other shapes; nothing was copied.
    """
    own = dict(module.named_parameters())
    problems = [
        f"{name} {tuple(value.shape)} is not in the model, or of another shape there"
        for name, value in checkpoint.parameters.items()
        if name not in own or own[name].shape != value.shape
    ]
    if optimizer is not None:
        # The classifier is in every checkpoint, trained or not.
        held = {name for name in checkpoint.parameters if group_of(name) != "head"}
        trained = {name for name in names if group_of(name) != "head"}
        problems += [f"{name} is trained on one side only" for name in sorted(held ^ trained)]
    if problems:
        raise CheckpointError(f"a checkpoint of {checkpoint.spec.selection!r} does not fit: {'; '.join(problems[:8])}")
    with torch.no_grad():
        for name, value in parameter_dict(module, list(checkpoint.parameters)).items():
            value.copy_(share(checkpoint.parameters[name], value))
    if optimizer is None:
        return
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in checkpoint.optimizer.items():
        name, _, entry = key.rpartition(".")
        # A copy, since the optimizer writes into what it is given; a step count is whole on every worker.
        state.setdefault(names.index(name), {})[entry] = (
            share(value.clone(), own[name]) if value.ndim else value.clone()
        )
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
