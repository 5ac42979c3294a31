"""What told the best trials from the others, of sweeps that never ran."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from unfreeze.load import load_config
from unfreeze.records import COMPONENTS, ModelFacts, TrialRecord, TrialState
from unfreeze.search.importance import importances

MakeRecord = Callable[..., TrialRecord]


def trials(make_record: MakeRecord, accuracy: Callable[[set[str], float], float]) -> list[TrialRecord]:
    rng = np.random.default_rng(0)
    found = []
    for index in range(60):
        names = [name for name in COMPONENTS if rng.random() < 0.5] or ["mha"]
        rate = float(10 ** rng.uniform(-3, -1))
        value = accuracy(set(names), rate)
        found.append(make_record(index, "+".join(names), [value + 1e-4 * rng.random()], learning_rate=rate))
    return found


def shares(model: ModelFacts, records: list[TrialRecord], **search: Any) -> dict[str, float]:
    return importances(load_config({"search": search}), model, records)


def test_what_decides_comes_first(make_record: MakeRecord, model: ModelFacts) -> None:
    by_mha = shares(model, trials(make_record, lambda on, rate: 0.5 + 0.3 * ("mha" in on)))
    assert next(iter(by_mha)) == "mha"
    by_rate = shares(model, trials(make_record, lambda on, rate: 0.9 - 0.2 * abs(np.log10(rate) + 1.5)))
    assert next(iter(by_rate)) == "learning_rate"
    for found in (by_mha, by_rate):
        assert set(found) == {*COMPONENTS, "learning_rate"}
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert sum(found.values()) == pytest.approx(1)


def test_what_is_no_point_of_the_space_does_not_count(make_record: MakeRecord, model: ModelFacts) -> None:
    records = trials(make_record, lambda on, rate: 0.5 + 0.3 * ("mha" in on))
    expected = shares(model, records)
    others = [
        make_record(100, "none", [0.99]),
        make_record(101, "mha:lora(2)", [0.99]),
        make_record(102, "fc1", [0.99], state=TrialState.STOPPED),
    ]
    assert shares(model, [*records, *others]) == expected


def test_rates_outside_the_range_that_grew(make_record: MakeRecord, model: ModelFacts) -> None:
    records = [*trials(make_record, lambda on, rate: 0.5 + 0.3 * ("mha" in on))]
    found = shares(model, [*records, make_record(60, "mha", [0.9], learning_rate=0.3)])
    assert next(iter(found)) == "mha"


def test_of_a_list_and_of_blocks(make_record: MakeRecord, model: ModelFacts) -> None:
    records = [
        make_record(i, ("mha", "fc1")[i % 2], [0.5 + 0.3 * (i % 2)], learning_rate=0.01 + (7 * i % 20) / 1e3)
        for i in range(20)
    ]
    listed = shares(model, records, space="listed", selections=["mha", "fc1"])
    assert list(listed) == ["selection", "learning_rate"]
    assert len(shares(model, records, space="blocks")) == 1 + model.num_blocks * len(COMPONENTS)


def test_where_there_is_nothing_to_tell(make_record: MakeRecord, model: ModelFacts) -> None:
    records = trials(make_record, lambda on, rate: 0.5 + 0.3 * ("mha" in on))
    assert shares(model, records[:9]) == {}
    assert shares(model, [make_record(i, "mha", [0.5]) for i in range(20)]) == {}
    assert shares(model, []) == {}
    grid = {"space": "grid", "selections": ["mha"], "learning_rates": [0.1], "seeds": [0]}
    assert shares(model, records, **grid) == {}
