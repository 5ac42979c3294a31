"""Delta checkpoints: what a trial changed, its optimizer state and position, as safetensors. Nothing is unpickled."""

import hashlib
import json
from dataclasses import dataclass, field

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from unfreeze.components.mapping import group_of
from unfreeze.errors import CheckpointError
from unfreeze.models.build import parameter_dict
from unfreeze.records import TrialReport, TrialSpec, to_dict, trial_spec_from_dict

_PARAMETER, _OPTIMIZER = "parameter.", "optimizer."


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A trial's state after ``step`` optimizer steps."""

    spec: TrialSpec
    base_digest: str
    step: int
    reports: tuple[TrialReport, ...]  # all up to this step
    parameters: dict[str, Tensor]
    optimizer: dict[str, Tensor]  # "<parameter>.<key>"; empty in a checkpoint for export
    ema: dict[str, Tensor] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        tensors = {_PARAMETER + name: value.detach().cpu().contiguous() for name, value in self.parameters.items()}
        tensors |= {_OPTIMIZER + name: value.detach().cpu().contiguous() for name, value in self.optimizer.items()}
        meta = {
            "spec": to_dict(self.spec),
            "base_digest": self.base_digest,
            "step": self.step,
            "reports": [to_dict(report) for report in self.reports],
            "sha256": _digest(tensors),
        }
        return save_tensors(tensors, metadata={"unfreeze": json.dumps(meta)})

    @staticmethod
    def from_bytes(data: bytes, *, base_digest: str) -> "Checkpoint":
        """Read a checkpoint made on the base model ``base_digest``.

        Raises:
            CheckpointError: damaged, or made on another base model.
        """
        try:
            tensors = load_tensors(data)
            # safetensors' loader drops the metadata; the header is 8 bytes of length, then JSON.
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            meta = json.loads(header["__metadata__"]["unfreeze"])
            spec = trial_spec_from_dict(meta["spec"])
            reports = tuple(TrialReport(**report) for report in meta["reports"])
            step, made_on, sha256 = int(meta["step"]), str(meta["base_digest"]), meta["sha256"]
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"the checkpoint is damaged ({error!r}); delete it to start over") from error
        if sha256 != _digest(tensors):  # safetensors has no checksum of its own
            raise CheckpointError("the checkpoint is damaged (its tensors changed); delete it to start over")
        if made_on != base_digest:
            raise CheckpointError(
                f"the checkpoint was made on base weights {made_on[:12]}…, this model's are "
                f"{base_digest[:12]}…; use the model and weights of its sweep"
            )
        parts: dict[str, dict[str, Tensor]] = {_PARAMETER: {}, _OPTIMIZER: {}}
        for name, value in tensors.items():
            kind = _PARAMETER if name.startswith(_PARAMETER) else _OPTIMIZER
            parts[kind][name.removeprefix(kind)] = value
        return Checkpoint(
            spec=spec,
            base_digest=made_on,
            step=step,
            reports=reports,
            parameters=parts[_PARAMETER],
            optimizer=parts[_OPTIMIZER],
        )


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
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
            value.copy_(checkpoint.parameters[name])
    if optimizer is None:
        return
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in checkpoint.optimizer.items():
        name, _, entry = key.rpartition(".")
        state.setdefault(names.index(name), {})[entry] = value.clone()  # the optimizer writes into what it is given
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
