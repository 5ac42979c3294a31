import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unfreeze.config import Config, SearchConfig, TrackingConfig
from unfreeze.errors import StorageError, SweepMismatchError
from unfreeze.load import load_config
from unfreeze.records import TrialRecord, TrialReport, TrialSpec, TrialState
from unfreeze.storage.ledger import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "runs"), "first")


def config_with(**sections: dict[str, Any]) -> Config:
    return load_config(sections)


def make_record(index: int, state: TrialState = TrialState.FINISHED) -> TrialRecord:
    spec = TrialSpec(
        index=index,
        selection="mha@1-2+fc1",
        learning_rate=0.1 + 0.2,
        seed=2**62 + 1,
        origin="search",
        stop_below=((64, 1 / 3), (128, 0.7 - 0.1)),
    )
    report = TrialReport(
        images_seen=64, train_loss=1e-300, val_loss=2.0**-1074, val_accuracy=2 / 3, seconds=1e22 / 3, timestamp_ms=1
    )
    return TrialRecord(
        spec=spec,
        state=state,
        reports=(report, replace(report, images_seen=128, train_loss=float("inf"))),
        trainable_parameters=12,
        checkpoint="checkpoints/x",
        error="Ärger\n\x1b[0m",
        slot="slot-0",
        attempts=3,
    )


def test_passwords_of_addresses_are_not_kept(ledger: Ledger) -> None:
    def config(password: str) -> Config:
        return Config(
            tracking=TrackingConfig(uri=f"https://user:{password}@mlflow.example"),
            search=SearchConfig(mirror=f"postgresql://user:{password}@db.example/optuna"),
        )

    ledger.claim(config("secret"))
    assert b"secret" not in ledger.read_bytes("config.json")
    assert ledger.read_json("config.json")["tracking"]["uri"] == "https://…@mlflow.example"
    assert ledger.is_claimed(config("another"))


def test_the_first_claim_takes_the_name_and_the_same_again_finds_it(ledger: Ledger) -> None:
    assert not ledger.is_claimed(config_with())
    ledger.claim(config_with())
    assert ledger.is_claimed(config_with())
    assert Ledger(ledger.location, "first").is_claimed(config_with())
    assert not Ledger(ledger.location, "second").is_claimed(config_with(finetune={"epochs": 1.0}))


def test_another_configuration_is_refused_with_the_keys(ledger: Ledger) -> None:
    ledger.claim(config_with())
    prior = {"prior": {"score": "uniform"}}
    other = config_with(finetune={"epochs": 3.0}, search=prior, model={"kwargs": {"depth": 2}})
    with pytest.raises(SweepMismatchError) as caught:
        ledger.claim(other)
    said = str(caught.value)
    assert "finetune.epochs: stored 10.0, now 3.0" in said
    assert "search.prior.score: stored 'reference', now 'uniform'" in said
    assert "model.kwargs.depth" in said
    assert "plasticity" not in said
    assert ledger.url("") in said
    assert "sweep.name" in said
    assert ledger.is_claimed(config_with())


def test_where_a_sweep_runs_and_who_watches_is_free(ledger: Ledger) -> None:
    ledger.claim(config_with())
    moved = config_with(
        cluster={"address": "auto", "num_slots": 7, "workers_per_trial": 2},
        tracking={"uri": None, "experiment": "other"},
        trial={"selection": "none", "seed": 4},
        paper={"sets": ["pet"]},
    )
    moved.storage = "s3://elsewhere/runs"
    assert ledger.is_claimed(moved)
    ledger.claim(moved)
    assert ledger.read_json("config.json")["cluster"]["num_slots"] == 7
    assert ledger.read_json("config.json")["storage"] == "s3://elsewhere/runs"


def test_the_node_local_cache_is_free(ledger: Ledger) -> None:
    ledger.claim(config_with(data={"cache_dir": "/home/a/.cache/unfreeze"}))
    assert ledger.is_claimed(config_with(data={"cache_dir": "/home/b/.cache/unfreeze"}))


@pytest.mark.parametrize(
    "free",
    [
        {"finetune": {"micro_batch_size": 8}},
        {"finetune": {"eval_batch_size": 16}},
        {"finetune": {"prefix_cache_gib": 2.0}},
        {"plasticity": {"num_actors": 2}},
        {"sweep": {"checkpoint_gib": 1.0}},
        {"data": {"num_workers": 7}},
        {"data": {"cache_gib": 7.0}},
    ],
)
def test_what_changes_no_number_is_free(ledger: Ledger, free: dict[str, Any]) -> None:
    ledger.claim(config_with())
    assert ledger.is_claimed(config_with(**free))


def test_what_decides_the_budget_is_not_free(ledger: Ledger) -> None:
    ledger.claim(config_with(search={"max_memory_gib": 4.0}))
    with pytest.raises(SweepMismatchError, match=r"finetune\.micro_batch_size"):
        ledger.is_claimed(config_with(search={"max_memory_gib": 4.0}, finetune={"micro_batch_size": 8}))
    front = Ledger(ledger.location, "front")
    front.claim(config_with(search={"objective": "pareto"}))
    with pytest.raises(SweepMismatchError, match=r"finetune\.prefix_cache_gib"):
        front.is_claimed(config_with(search={"objective": "pareto"}, finetune={"prefix_cache_gib": 2.0}))


def test_the_same_runs_may_be_chosen_from_differently(ledger: Ledger) -> None:
    """A grid costs hundreds of GPU-hours; reproducing the published choice from it costs an evaluation."""
    grid = {"space": "grid", "selections": ["mha"], "learning_rates": [0.1], "seeds": [0]}
    ledger.claim(config_with(search=grid))
    assert ledger.is_claimed(config_with(search={**grid, "select_on": "test"}))
    with pytest.raises(SweepMismatchError, match=r"search\.seeds"):
        ledger.is_claimed(config_with(search={**grid, "seeds": [0, 1]}))


@pytest.mark.parametrize("state", TrialState)
def test_a_trial_comes_back_as_it_was(ledger: Ledger, state: TrialState) -> None:
    record = make_record(3, state)
    ledger.write_trial(record)
    read = ledger.trial("trial-00003")
    assert read == record
    assert read is not None
    assert read.state is state
    assert hash(read.spec) == hash(record.spec)
    assert ledger.trials() == [record]


def test_a_loss_that_is_not_a_number_comes_back(ledger: Ledger) -> None:
    report = replace(make_record(0).reports[0], train_loss=float("nan"))
    ledger.write_trial(replace(make_record(0, TrialState.DIVERGED), reports=(report,)))
    (read,) = ledger.trials()
    assert read.reports[0].train_loss != read.reports[0].train_loss


def test_what_tune_lost_in_an_older_ledger_is_open(ledger: Ledger) -> None:
    lost = replace(make_record(3, TrialState.FAILED), error="Tune lost the trial; see Ray's logs")
    own = make_record(4, TrialState.FAILED)
    for record in (lost, own):
        ledger.write_trial(record)
    opened = replace(lost, state=TrialState.RUNNING, error=None)
    assert ledger.trials() == [opened, own]
    assert ledger.trial("trial-00003") == opened


def test_failed_trials_may_be_asked_for_again(ledger: Ledger) -> None:
    ledger.claim(config_with())
    assert ledger.is_claimed(config_with(sweep={"retry_failed": True}))


def test_trials_come_by_index(ledger: Ledger) -> None:
    assert ledger.trials() == []
    assert ledger.trial("trial-00000") is None
    for index in (7, 100_000, 0, 99_999, 20):
        ledger.write_trial(make_record(index))
    Ledger(ledger.location, "other").write_trial(make_record(1))
    assert [record.spec.index for record in ledger.trials()] == [0, 7, 20, 99_999, 100_000]


def test_a_trial_is_replaced(ledger: Ledger) -> None:
    ledger.write_trial(make_record(0, TrialState.RUNNING))
    ledger.write_trial(make_record(0, TrialState.STOPPED))
    assert [record.state for record in ledger.trials()] == [TrialState.STOPPED]


def test_bytes_and_json(ledger: Ledger) -> None:
    assert ledger.read_json("facts.json") is None
    ledger.write_json("facts.json", {"a": [1, None, "ü"]})
    ledger.write_bytes("export/model.bin", b"\x00\xff")
    assert ledger.read_json("facts.json") == {"a": [1, None, "ü"]}
    assert ledger.read_bytes("export/model.bin") == b"\x00\xff"
    assert Path(ledger.url("export/model.bin")).read_bytes() == b"\x00\xff"
    ledger.delete("facts.json")
    assert ledger.read_json("facts.json") is None


@pytest.mark.parametrize("damage", [b"", b'{"spec": {"index": 0, ', b"\xff\xfe\x00", b"{'a': 1}"])
@pytest.mark.parametrize("key", ["config.json", "trials/trial-00000.json"])
def test_damaged_json_is_named_with_its_place(ledger: Ledger, key: str, damage: bytes) -> None:
    ledger.write_bytes(key, damage)
    with pytest.raises(StorageError, match=f"{ledger.location}/first/{key} is not JSON"):
        ledger.read_json(key)
    with pytest.raises(StorageError):
        _ = ledger.claim(config_with()) if key == "config.json" else ledger.trials()


def test_a_damaged_trial_is_named_with_its_place(ledger: Ledger) -> None:
    ledger.write_bytes("trials/trial-00000.json", b"")
    with pytest.raises(StorageError, match=f"{ledger.location}/first/trials/trial-00000.json is not JSON"):
        ledger.trials()


@pytest.mark.parametrize("content", [{}, [], {"spec": {}}])
def test_a_trial_without_its_fields_is_a_storage_error(ledger: Ledger, content: object) -> None:
    ledger.write_json("trials/trial-00000.json", content)
    with pytest.raises(StorageError, match="trial-00000"):
        ledger.trials()


def test_survives_pickling(ledger: Ledger) -> None:
    ledger.claim(config_with())
    copy = pickle.loads(pickle.dumps(ledger))
    copy.write_trial(make_record(0))
    assert copy.is_claimed(config_with())
    assert ledger.trials() == [make_record(0)]
    assert copy.url("a") == ledger.url("a")


def test_a_place_that_cannot_be_read_is_a_storage_error() -> None:
    with pytest.raises(StorageError, match="ftp://x"):
        Ledger("ftp://x", "first")


def test_gpus_by_what_there_is_are_no_other_configuration(tmp_path: Path) -> None:
    def configured(gpus: float | str) -> Config:
        raw = {"cluster": {"gpus_per_worker": gpus}, "search": {"max_memory_gib": 4.0}}
        return load_config(raw)

    ledger = Ledger(str(tmp_path), "sweep")
    ledger.claim(configured(1.0))
    assert ledger.is_claimed(configured("auto"))
    with pytest.raises(SweepMismatchError, match="gpus_per_worker"):
        ledger.is_claimed(configured(0.0))
