"""What one sweep's trials say of another's components: shares of blocks, several sweeps, other scores."""

from collections.abc import Callable

import numpy as np
import pytest

from unfreeze.evidence.model import Effects, standardised
from unfreeze.evidence.transfer import component_effects, expected_of_components, pool
from unfreeze.records import COMPONENTS, ModelFacts, TrialRecord, TrialState

MakeRecord = Callable[..., TrialRecord]
SCORES = {"ln1": 0.2, "mha": 3.0, "ln2": 0.5, "fc1": 2.0, "fc2": 1.0}
TEXTS = ["mha", "fc1", "fc2", "ln1", "ln2", "mha+fc1", "mha+ln1", "fc1+fc2", "ln1+ln2", "mha+fc2", "fc1+ln2"]


def sweep(make_record: MakeRecord, best: str, *, blocks: str = "") -> list[TrialRecord]:
    """Accuracy is higher where ``best`` is trained; ``blocks``: of every component alone these."""
    return [
        make_record(
            index,
            "+".join(f"{name}{blocks}" for name in text.split("+")),
            [0.6 + 0.15 * (best in text)],
            learning_rate=0.01 + index / 1e4,
        )
        for index, text in enumerate(TEXTS)
    ]


def test_what_helped_there_is_expected_to_help(make_record: MakeRecord, model: ModelFacts) -> None:
    found = component_effects(sweep(make_record, "fc2"), model, dict.fromkeys(COMPONENTS, 0.0))
    assert found is not None
    assert COMPONENTS[int(np.argmax(found.mean[1:]))] == "fc2"
    assert found.mean[0] == 0  # of a score that says nothing
    np.linalg.cholesky(found.covariance[1:, 1:])
    assert component_effects([], model, SCORES) is None
    stopped = make_record(0, "mha", [0.5], state=TrialState.STOPPED)
    assert component_effects([stopped, make_record(1, "none", [0.5])], model, SCORES) is None


def test_depth_does_not_carry_over(make_record: MakeRecord, model: ModelFacts) -> None:
    """The deep half or the other one: the same is learned, and it is of half a component."""
    deep, shallow, whole = (
        component_effects(sweep(make_record, "mha", blocks=blocks), model, SCORES) for blocks in ("@2-3", "@0-1", "")
    )
    assert deep is not None
    assert shallow is not None
    assert whole is not None
    np.testing.assert_allclose(deep.mean, shallow.mean, atol=1e-12)
    np.testing.assert_allclose(deep.covariance, shallow.covariance, atol=1e-12)
    assert deep.mean[2] > whole.mean[2] + 0.05  # mha whole: what half of it does, twice


def test_sweeps_count_the_same_and_agreement_makes_surer(make_record: MakeRecord, model: ModelFacts) -> None:
    one, other = (component_effects(sweep(make_record, best), model, SCORES) for best in ("mha", "fc2"))
    assert one is not None
    assert other is not None
    alone, agreeing = pool({"a": one}), pool({"a": one, "b": one})
    np.testing.assert_allclose(alone.mean, one.mean)
    np.testing.assert_allclose(np.array(agreeing.covariance), one.covariance / 2)
    apart = pool({"a": one, "b": other})
    assert apart.sweeps == ("a", "b")
    np.testing.assert_allclose(apart.mean, (one.mean + other.mean) / 2)
    assert (np.diag(apart.covariance) > np.diag((one.covariance + other.covariance) / 4))[1:].all()
    np.testing.assert_allclose(pool({"b": other, "a": one}).covariance, apart.covariance)


def test_the_worth_of_a_score_goes_by_the_score_there(make_record: MakeRecord) -> None:
    """β is 0.5 and nothing else was learned: what is expected of a component follows its score, wherever measured."""
    learned = pool({"a": Effects(np.r_[0.5, np.zeros(5)], np.diag(np.r_[0.01, np.zeros(5)]))})
    turned = {name: -value for name, value in SCORES.items()}
    for scores in (SCORES, turned):
        z = standardised(np.array([scores[name] for name in COMPONENTS]))
        found = expected_of_components(learned, scores)
        np.testing.assert_allclose(found.mean, 0.5 * z)
        np.testing.assert_allclose(found.covariance, 0.01 * np.outer(z, z), atol=1e-15)
    assert expected_of_components(learned, dict.fromkeys(COMPONENTS, 1.0)).mean == pytest.approx(np.zeros(5))
