"""The published way to choose, for search.select_on=test alone: every trial's checkpoint on the test images."""

import torch

from unfreeze.config import Config
from unfreeze.data.sets.catalog import load_test
from unfreeze.errors import CheckpointError
from unfreeze.finetune.checkpoint import Checkpoint, restore
from unfreeze.finetune.evaluate import evaluate
from unfreeze.finetune.network import make_autocast
from unfreeze.finetune.warm import WarmModel
from unfreeze.models.build import build_base
from unfreeze.records import DataFacts, TestResult, TrialState
from unfreeze.storage.ledger import Ledger


def open_test_for_all(config: Config, ledger: Ledger, data: DataFacts) -> None:
    """Evaluate the best-validation checkpoint of each finished trial on the test images.

    ``test.json`` has each result as soon as there is one; run again, only what lacks there is evaluated. Runs as a Ray
    task, like a worker.

    Raises:
        CheckpointError: a checkpoint is missing, damaged or of another base model.
    """
    results = ledger.tests()
    finished = [record for record in ledger.trials() if record.state is TrialState.FINISHED]
    left = [record.spec.trial_id for record in finished if record.spec.trial_id not in results]
    if not left:
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = build_base(config, num_classes=len(data.classes))
    warm = WarmModel(base, device)
    test = load_test(config.data, image_size=base.spec.image_size)
    for trial_id in left:
        checkpoint = _read(ledger, trial_id, base_digest=base.facts.digest)
        spec = checkpoint.spec
        finetune = config.finetune
        warm.prepare(spec.selection, seed=spec.seed, train_head=finetune.train_head, lora_alpha=finetune.lora_alpha)
        restore(checkpoint, warm.module, None, [])
        result = evaluate(
            warm.module,
            test,
            base.spec,
            batch_size=config.finetune.eval_batch_size,
            autocast=make_autocast(config.finetune.precision, device),
            device=device,
        )
        results[trial_id] = TestResult(correct=result.correct, num_test=result.count)
        ledger.write_tests(results)


def _read(ledger: Ledger, trial_id: str, *, base_digest: str) -> Checkpoint:
    key = f"checkpoints/{trial_id}/best.safetensors"
    try:
        return Checkpoint.from_bytes(ledger.read_bytes(key), base_digest=base_digest)
    except KeyError as error:
        raise CheckpointError(
            f"{trial_id} finished, but {ledger.url(key)} is gone; restore it, or delete {trial_id}'s record below "
            f"trials/ and the trial runs again"
        ) from error
