"""Every trial on the test images: the numbers against a plain forward pass, and going on after a cut."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from unfreeze.config import Config
from unfreeze.data.pixels.batches import eval_view
from unfreeze.data.sets.catalog import load_test, load_train_val
from unfreeze.errors import CheckpointError
from unfreeze.finetune.loop import finetune
from unfreeze.finetune.warm import WarmModel
from unfreeze.load import load_config
from unfreeze.models.build import build_model
from unfreeze.records import DataFacts, TestResult, TrialRecord, TrialSpec, TrialState
from unfreeze.storage.ledger import Ledger
from unfreeze.sweep import published
from unfreeze.sweep.published import open_test_for_all

SELECTIONS = ("mha", "all", "ln1@0-2", "none")  # what one changed, the next must not see
SPECS = [
    TrialSpec(index=index, selection=name, learning_rate=0.1, seed=index, origin="prior")
    for index, name in enumerate(SELECTIONS)
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    grid = {"space": "grid", "selections": list(SELECTIONS), "learning_rates": [0.1], "seeds": [0]}
    return load_config(
        {
            "storage": str(tmp_path_factory.mktemp("runs")),
            "data": {"max_train_images": 100, "max_val_images": 20, "cache_dir": str(tmp_path_factory.mktemp("cache"))},
            "finetune": {"steps": 6, "batch_size": 16, "num_reports": 1},
            "search": {**grid, "select_on": "test"},
        }
    )


@pytest.fixture(scope="module")
def reference(config: Config) -> dict[str, tuple[bytes, int]]:
    """Trial → its checkpoint, and how many test images the trained module gets right right after its training."""
    data = load_train_val(config.data, image_size=32)
    test = load_test(config.data, image_size=32)
    base = build_model(config.model, num_classes=10, cache_dir=Path(config.data.cache_dir))
    warm = WarmModel(base, torch.device("cpu"))
    images = torch.from_numpy(test.take(torch.arange(len(test)).numpy()))
    found = {}
    for spec in SPECS:
        (progress,) = finetune(warm, data, spec, config.finetune, augment="none")
        stored = progress.checkpoint.to_bytes()
        with torch.no_grad():
            answers = warm.module.eval()(eval_view(images, base.spec)).argmax(1)
        found[spec.trial_id] = (stored, int((answers == torch.from_numpy(test.labels)).sum()))
    return found


@pytest.fixture(scope="module")
def facts(config: Config) -> DataFacts:
    counts = dict.fromkeys(("num_train", "num_val", "num_test", "num_source"), 0)
    digest = load_test(config.data, image_size=32).digest
    return DataFacts(name="digits", digest="", classes=tuple("0123456789"), test_digest=digest, **counts)


@pytest.fixture
def ledger(config: Config, reference: dict[str, tuple[bytes, int]], tmp_path: Path) -> Ledger:
    ledger = Ledger(str(tmp_path), "published")
    for spec in SPECS:
        ledger.write_trial(TrialRecord(spec=spec, state=TrialState.FINISHED))
        ledger.write_bytes(f"checkpoints/{spec.trial_id}/best.safetensors", reference[spec.trial_id][0])
    return ledger


def test_every_trial_as_it_was_trained(
    config: Config, facts: DataFacts, ledger: Ledger, reference: dict[str, tuple[bytes, int]]
) -> None:
    open_test_for_all(config, ledger, facts)
    assert {trial_id: result.correct for trial_id, result in ledger.tests().items()} == {
        trial_id: correct for trial_id, (_, correct) in reference.items()
    }
    assert {result.num_test for result in ledger.tests().values()} == {len(load_test(config.data, image_size=32))}
    assert len({correct for _, correct in reference.values()}) > 1


def test_it_goes_on_where_it_was_cut(
    config: Config,
    facts: DataFacts,
    ledger: Ledger,
    reference: dict[str, tuple[bytes, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is there is left alone; unfinished trials have no place there; with nothing left no model is built."""
    known = TestResult(correct=1, num_test=2)
    ledger.write_tests({"trial-00000": known})
    ledger.write_trial(TrialRecord(spec=SPECS[3], state=TrialState.DIVERGED))
    open_test_for_all(config, ledger, facts)
    results = ledger.tests()
    assert list(results) == ["trial-00000", "trial-00001", "trial-00002"]
    assert results["trial-00000"] == known
    assert results["trial-00002"].correct == reference["trial-00002"][1]
    monkeypatch.delattr(published, "load_model")
    open_test_for_all(config, ledger, facts)
    assert ledger.tests() == results


def test_a_lost_checkpoint_is_named_and_the_results_before_it_stay(
    config: Config, facts: DataFacts, ledger: Ledger
) -> None:
    ledger.delete("checkpoints/trial-00001/best.safetensors")
    with pytest.raises(CheckpointError, match=r"trial-00001 finished, but .*trial-00001/best\.safetensors is gone"):
        open_test_for_all(config, ledger, facts)
    assert list(ledger.tests()) == ["trial-00000"]
