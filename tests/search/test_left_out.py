"""What the other data sets would have saved on the one left out."""

import dataclasses

import numpy as np
import pytest
from finished_sweep import build_evidence, evidence, make_settling_trials  # noqa: F401
from scipy.special import expit, logit

from unfreeze.evidence.model import Effects, Terms
from unfreeze.evidence.sets import pool_sweeps
from unfreeze.evidence.worth import weigh_scores
from unfreeze.records import PooledSweeps
from unfreeze.report.sets import sets_page, sets_report
from unfreeze.search.left_out import NUM_TRIALS, count_trials, every_cell, leave_each_out, trials_saved

CELLS = every_cell(np.linspace(-3, -1, 4))
EFFECTS = np.array([-0.8, 0.6, -0.6, 0.7, -0.5])
TRUTH = expit(0.5 + CELLS.switches @ EFFECTS - 0.5 * (CELLS.log_rates + 2) ** 2)
TERMS = Terms.of(np.zeros(5), np.ones(5), np.arange(5), rates=(1e-3, 1e-1))


def test_knowing_the_effects_beforehand_saves_what_finding_them_takes() -> None:
    known = Effects(EFFECTS, 1e-4 * np.eye(5))
    found = trials_saved("a", CELLS, TRUTH[None].repeat(2, axis=0), 0.02, TERMS, known)
    assert found.alone > found.learned == 0
    assert found.saved == pytest.approx(found.alone - found.learned)
    assert found.low <= found.saved <= found.high


def test_trials_are_counted_until_the_recommendation_is_close() -> None:
    flat = np.full(len(CELLS), 0.8)
    assert count_trials(TERMS, CELLS, flat, np.zeros(3)) == 0  # any is the best
    hidden = flat.copy()
    hidden[0] = 0.9  # one component alone at the lowest rate
    assert count_trials(TERMS, CELLS, hidden, np.zeros(3)) == 3  # all of them if it never arrives
    assert logit(hidden[0]) > logit(flat[0])


@pytest.fixture
def sweeps(build_evidence):  # noqa: F811
    def build(digest: str, worth: float):
        trials = tuple(make_settling_trials(worth, noise=0.002))
        found = build_evidence(trials)
        data = dataclasses.replace(found.data, digest=digest)
        return dataclasses.replace(found, data=data, worths=weigh_scores(found.plasticity, trials, found.model))

    return {name: build(name, worth) for name, worth in (("a", 0.02), ("b", 0.03))}


def test_each_of_the_pooled_sweeps_is_left_out_once(sweeps) -> None:
    found = leave_each_out(sweeps, pool_sweeps(sweeps))
    assert [own.sweep for own in found.left_out] == ["a", "b"]
    assert all(0 <= own.learned <= NUM_TRIALS and 0 <= own.alone <= NUM_TRIALS for own in found.left_out)
    assert leave_each_out(sweeps, pool_sweeps(sweeps)) == found
    for text in (sets_report(sweeps, found), sets_page(sweeps, found)):
        assert "Leave one set out" in text
        assert f"{found.left_out[0].alone:.1f}" in text


def test_one_sweep_has_no_others(sweeps) -> None:
    alone = {"a": sweeps["a"]}
    found: PooledSweeps = leave_each_out(alone, pool_sweeps(alone))
    assert found.left_out == ()
    assert "Leave one set out" not in sets_report(alone, found)
