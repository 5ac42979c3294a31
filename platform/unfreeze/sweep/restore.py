"""A finished trial's model back from its checkpoint, and what it does on images. Runs where a model may: in a task."""

import torch

from unfreeze.config import Config, FinetuneConfig
from unfreeze.data.pixels.part import Part
from unfreeze.errors import CheckpointError
from unfreeze.finetune.checkpoint import Checkpoint, restore
from unfreeze.finetune.evaluate import Evaluation, evaluate
from unfreeze.finetune.network import make_autocast
from unfreeze.finetune.warm import WarmModel
from unfreeze.models.build import build_base
from unfreeze.storage.ledger import Ledger


def load_model(config: Config, *, num_classes: int) -> WarmModel:
    """The sweep's base model on this process's device, whole even where trials shard it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return WarmModel(build_base(config, num_classes=num_classes), device)


def restore_trial(warm: WarmModel, ledger: Ledger, trial_id: str, config: FinetuneConfig) -> None:
    """Bring ``warm`` to where the trial's validation was best, adapters included.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or of another base model.
    """
    key = f"checkpoints/{trial_id}/best.safetensors"
    try:
        stored = ledger.read_bytes(key)
    except KeyError as error:
        raise CheckpointError(
            f"{trial_id} finished, but {ledger.url(key)} is gone; restore it, or delete {trial_id}'s record below "
            f"trials/ and the trial runs again"
        ) from error
    checkpoint = Checkpoint.from_bytes(stored, base_digest=warm.base.facts.digest)
    spec = checkpoint.spec
    warm.prepare(spec.selection, seed=spec.seed, train_head=config.train_head, lora_alpha=config.lora_alpha)
    restore(checkpoint, warm.module, None, [])


def evaluate_model(warm: WarmModel, part: Part, config: FinetuneConfig) -> Evaluation:
    """Accuracy and loss of the model as it stands."""
    return evaluate(
        warm.module,
        part,
        warm.base.spec,
        batch_size=config.eval_batch_size,
        autocast=make_autocast(config.precision, warm.device),
        device=warm.device,
    )
