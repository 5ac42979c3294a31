"""The published way to choose, for search.select_on=test alone: every trial's checkpoint on the test images."""

from unfreeze.config import Config
from unfreeze.data.sets.catalog import load_test
from unfreeze.records import DataFacts, TestResult, TrialState
from unfreeze.storage.ledger import Ledger
from unfreeze.sweep.restore import evaluate_model, load_model, restore_trial


def open_test_for_all(config: Config, ledger: Ledger, data: DataFacts) -> None:
    """Evaluate the best-validation checkpoint of each finished trial on the test images.

    ``test.json`` has each result as soon as there is one; run again, only what lacks there is evaluated. Runs as a Ray
    task, like a worker.

    Raises:
        CheckpointError: a checkpoint is missing, damaged or of another base model.
        DataError: the test images are not those that the sweep began with.
    """
    results = ledger.tests()
    finished = [record for record in ledger.trials() if record.state is TrialState.FINISHED]
    left = [record.spec.trial_id for record in finished if record.spec.trial_id not in results]
    if not left:
        return
    warm = load_model(config, num_classes=len(data.classes))
    test = load_test(config.data, image_size=warm.base.spec.image_size, facts=data)
    for trial_id in left:
        restore_trial(warm, ledger, trial_id, config.finetune)
        result = evaluate_model(warm, test, config.finetune)
        results[trial_id] = TestResult(correct=result.correct, num_test=result.count)
        ledger.write_tests(results)
