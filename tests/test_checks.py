from typing import Any

import pytest
from configuring import problems_of

from unfreeze.load import load_config


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ({"finetune": {"batch_size": 10}, "cluster": {"workers_per_trial": 4}}, "finetune.batch_size"),
        ({"data": {"name": "cifar10"}}, "data.source_path"),
        ({"data": {"name": "folder", "source_path": "s"}}, "data.path"),
    ],
)
def test_sections_that_contradict_each_other_are_named(raw: dict[str, Any], key: str) -> None:
    assert key in problems_of(raw)[0]


def test_all_contradictions_between_sections_come_at_once() -> None:
    raw = {"finetune": {"batch_size": 3}, "cluster": {"workers_per_trial": 2}, "data": {"name": "folder"}}
    said = "\n".join(problems_of(raw))
    assert all(key in said for key in ("finetune.batch_size", "data.source_path", "data.path"))


def test_contradictions_come_together_with_wrong_values() -> None:
    said = "\n".join(problems_of({"data": {"name": "folder"}, "finetune": {"epochs": 0}}))
    assert all(key in said for key in ("finetune.epochs", "data.source_path"))


@pytest.mark.parametrize(("batch_size", "cross", "sound"), [(32, 4, True), (4, 4, True), (30, 4, False), (2, 4, False)])
def test_a_batch_holds_whole_groups(batch_size: int, cross: int, sound: bool) -> None:
    raw = {"plasticity": {"batch_size": batch_size, "cross": cross}}
    if sound:
        assert load_config(raw).plasticity.cross == cross
    else:
        (line,) = problems_of(raw)
        expected = f"plasticity.batch_size must be a multiple of plasticity.cross, but got {batch_size} and {cross}"
        assert line.strip() == expected
