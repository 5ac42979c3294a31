"""The words' rule, the sentence, and what gives no number."""

import dataclasses
import math

import pytest
from finished_sweep import make_settling_trials

from unfreeze.evidence.verdict import CONTRADICTED, SUPPORTED, UNDECIDED, verdict, verdict_word
from unfreeze.evidence.worth import weigh_scores
from unfreeze.records import COMPONENTS, MODES, ScoreWorth, TrialState, Worth

CLEAR = Worth(mean=0.012, low=0.003, high=0.026, positive=0.99, p=1 / 120, bayes_factor=9.0)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, SUPPORTED),
        ({"p": 4 / 120, "positive": 0.975}, SUPPORTED),
        ({"p": 5 / 120}, UNDECIDED),
        ({"positive": 0.97}, UNDECIDED),
        ({"low": -0.001}, UNDECIDED),
        ({"mean": -0.012, "low": -0.026, "high": -0.003, "positive": 0.01}, CONTRADICTED),
        ({"mean": -0.012, "low": -0.026, "high": -0.003, "positive": 0.03}, UNDECIDED),
        ({"low": -math.inf, "high": math.inf}, UNDECIDED),
    ],
)
def test_the_words(changes, word) -> None:
    assert verdict_word(dataclasses.replace(CLEAR, **changes)) == word


def test_the_sentence() -> None:
    worth = dataclasses.replace(CLEAR, low=-0.003, positive=0.94, p=0.0583)
    assert verdict([ScoreWorth(score="reference", num_trials=32, worth=worth)]) == (
        "Undecided: whether plasticity (reference) predicts accuracy here is not settled: one standard deviation more "
        "plasticity is worth +1.2 points of accuracy [−0.3, 2.6], size held fixed; P(β > 0) = 0.94, p = 0.058 by all "
        "120 exchanges of the components’ labels, n = 32 trials."
    )
    unbounded = dataclasses.replace(CLEAR, mean=-0.0001, low=-math.inf, high=math.inf)
    assert "worth +0.0 points of accuracy [−∞, ∞]" in verdict(
        [ScoreWorth(score="in_situ", num_trials=9, worth=unbounded)]
    )


def test_one_claim_of_a_sweep_and_it_is_the_first_modes() -> None:
    worths = [ScoreWorth(score=score, num_trials=32, worth=CLEAR) for score in ("fisher", "in_situ", "reference")]
    assert verdict(worths).startswith("Supported: plasticity (reference) predicts accuracy here: one standard")
    assert verdict(worths).count("upported") == 1
    assert "not measured" in verdict(worths[:1])


# --- from trials ------------------------------------------------------------------------------------------------------


def test_what_plasticity_made_is_supported_and_its_reverse_contradicted(evidence, model) -> None:
    for worth, start, sign in ((0.03, "Supported", 1), (-0.03, "Contradicted", -1)):
        worths = weigh_scores(evidence.plasticity, make_settling_trials(worth), model)
        assert verdict(worths).startswith(start)
        reference, in_situ = (found.worth for found in worths)
        assert sign * reference.mean > 0.01
        assert sign * in_situ.mean < -0.01  # measured the other way round
        assert reference.p <= 4 / 120


def test_noise_is_undecided(evidence, model) -> None:
    worths = weigh_scores(evidence.plasticity, make_settling_trials(0.0, noise=0.03), model)
    assert verdict(worths).startswith("Undecided: whether")


def test_blocks_are_switches_of_their_component(evidence, model) -> None:
    texts = [*COMPONENTS, "mha@0-1", "mha@2-3", "ln1@0-1+fc2@3", "fc1@0", "fc2@1-2", "ln2@3", "ln1@2"]
    (found, _) = weigh_scores(evidence.plasticity, make_settling_trials(0.03, texts=texts), model)
    assert found.worth.mean > 0
    assert found.num_trials == 24


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda trials: trials[:2], "2 finished trials of components are too few"),
        (lambda trials: [], "0 finished trials"),
        (
            lambda trials: [dataclasses.replace(t, state=TrialState.STOPPED) for t in trials],
            "0 finished trials of components are too few",
        ),
        (lambda trials: [t for t in trials if t.spec.seed == 0], "every selection was run once"),
        (lambda trials: [t for t in trials if "ln" not in t.spec.selection] * 2, "only fc1, fc2, mha were trained"),
        (lambda trials: _with_accuracy(trials, 0.75), "every trial has the same accuracy, 75.00%"),
        (lambda trials: [*_with_accuracy(trials[:1], math.nan), *trials[1:]], "an accuracy is not finite"),
    ],
)
def test_no_number_and_the_reason(change, reason, evidence, model) -> None:
    worths = weigh_scores(evidence.plasticity, change(make_settling_trials(0.03)), model)
    assert verdict(worths).startswith("Undecided: what plasticity (reference) is worth has no number, since ")
    assert reason in verdict(worths)


def _with_accuracy(trials, accuracy):
    return [
        dataclasses.replace(t, reports=tuple(dataclasses.replace(r, val_accuracy=accuracy) for r in t.reports))
        for t in trials
    ]


@pytest.mark.parametrize(
    ("value", "reason"), [(1.0, "same everywhere"), (math.nan, "not finite or not measured everywhere")]
)
def test_a_score_that_says_nothing_has_no_number(value, reason, evidence, model) -> None:
    rows = tuple(dataclasses.replace(row, mean=value) for row in evidence.plasticity.rows)
    table = dataclasses.replace(evidence.plasticity, rows=rows)
    assert reason in verdict(weigh_scores(table, make_settling_trials(0.03), model))


def test_a_score_that_lacks_a_block_has_no_number(evidence, model) -> None:
    table = dataclasses.replace(evidence.plasticity, rows=evidence.plasticity.rows[1:])
    reference, in_situ = weigh_scores(table, make_settling_trials(0.03), model)
    assert "not measured everywhere" in reference.trouble
    assert in_situ.worth is not None


def test_a_sweep_without_plasticity(evidence, model) -> None:
    table = dataclasses.replace(evidence.plasticity, rows=())
    assert "not measured" in verdict(weigh_scores(table, make_settling_trials(0.03), model))


def test_modes_are_shown_first(full_table, model) -> None:
    found = [each.score for each in weigh_scores(full_table, make_settling_trials(0.03), model)]
    assert found == ["reference", "in_situ", "gradient_norm", "fisher"]
    assert set(found[:2]) <= set(MODES)
