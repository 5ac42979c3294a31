"""Which sweeps are pooled, which stand apart, and what is refused."""

import dataclasses

import pytest
from finished_sweep import make_settling_trials

from unfreeze.errors import ConfigError
from unfreeze.evidence.recommend import choose_rates
from unfreeze.evidence.sets import pool_sweeps
from unfreeze.evidence.verdict import pooled_sentence
from unfreeze.evidence.worth import weigh_scores
from unfreeze.records import Pooled, PooledSweeps


@pytest.fixture
def sweep(build_evidence):
    """A sweep of its own images, what plasticity is worth in it, and what is to differ."""

    def build(digest: str, worth: float, **changes):
        trials = tuple(make_settling_trials(worth, noise=0.002))
        found = build_evidence(trials)
        return dataclasses.replace(
            found,
            data=dataclasses.replace(found.data, digest=digest, name=f"images {digest}"),
            worths=weigh_scores(found.plasticity, trials, found.model),
            choices=tuple(choose_rates(trials)),
            **changes,
        )

    return build


def test_three_sets(sweep) -> None:
    found = pool_sweeps({name: sweep(name, worth) for name, worth in (("a", 0.02), ("b", 0.03), ("c", 0.04))})
    assert found.names == ("a", "b", "c")
    assert found.apart == {}
    assert found.pooled.num_sets == 3
    assert 0 < found.pooled.low < found.pooled.mean < found.pooled.high
    assert found.pooled.next_low < found.pooled.low
    assert len(found.comparisons) == 10
    assert min(found.ranks, key=found.ranks.get) == "ln1"  # the first component is the most plastic one here
    assert pooled_sentence(found).startswith("Supported: plasticity (reference) predicts accuracy over these 3 data")


def test_other_protocols_and_models_stand_apart(sweep) -> None:
    a = sweep("a", 0.03)
    config = {**a.config, "finetune": {**a.config["finetune"], "batch_size": 7}}
    other = dataclasses.replace(a.model, name="vit_x", digest="f" * 64)
    found = pool_sweeps(
        {"a": a, "b": sweep("b", 0.03, config=config), "c": sweep("c", 0.03, model=other), "d": sweep("d", 0.02)}
    )
    assert found.names == ("a", "d")
    assert found.apart["b"] == "another protocol (finetune.batch_size: stored 64, now 7)"
    assert found.apart["c"] == "another model, vit_x (ffffffff)"
    assert found.comparisons[0].num_sets == 2
    assert "it takes three sets to say what to expect of the next" in pooled_sentence(found)


def test_the_papers_sets_are_one_protocol_and_the_test_chose(sweep) -> None:
    """Its sets are trained for different lengths; accuracies are those of the test where it chose."""
    found = {}
    for name, steps in (("a", 100), ("b", 200)):
        own = sweep(name, 0.03)
        config = {**own.config, "finetune": {**own.config["finetune"], "steps": steps}}
        choices = tuple(dataclasses.replace(c, test_accuracy=c.val_accuracy - 0.1) for c in own.choices)
        found[name] = dataclasses.replace(own, config=config, choices=choices)
    assert pool_sweeps(found).names == ("a",)
    together = pool_sweeps(found, one_protocol=True)
    assert together.names == ("a", "b")
    (mha_fc1, *_) = together.comparisons
    mha, fc1 = ({c.selection: c for c in found["a"].choices}[name].test_accuracy for name in ("mha", "fc1"))
    assert mha_fc1.difference == pytest.approx(100 * (mha - fc1))


def test_no_number_stands_apart_and_nothing_is_claimed_of_one(sweep) -> None:
    few = sweep("b", 0.03)
    few = dataclasses.replace(few, trials=few.trials[:3])
    found = pool_sweeps({"a": sweep("a", 0.03), "b": few})
    assert "3 finished trials of components are too few" in found.apart["b"]
    assert pooled_sentence(found) == "Undecided: of these sweeps only a can be pooled, and it takes two."
    assert found.comparisons == ()
    found = pool_sweeps({"b": few})
    assert found.pooled is None
    assert "no sweep has a number" in pooled_sentence(found)


def test_without_plasticity(sweep) -> None:
    a = sweep("a", 0.03)
    bare = dataclasses.replace(a, plasticity=dataclasses.replace(a.plasticity, rows=()), worths=())
    assert pool_sweeps({"a": bare}).apart == {"a": "plasticity was not measured"}


def test_the_same_images_twice_are_refused(sweep) -> None:
    with pytest.raises(ConfigError, match="a and b are sweeps of the same images"):
        pool_sweeps({"a": sweep("a", 0.03), "b": sweep("a", 0.02)})


def test_undecided_where_the_exchanges_do_as_well() -> None:
    pooled = Pooled(mean=0.01, low=0.005, high=0.015, spread=0.002, next_low=-0.001, next_high=0.02, num_sets=4, p=0.05)
    found = PooledSweeps(
        score="in_situ", names=("a",) * 4, apart={}, pooled=pooled, accuracy=0.9, comparisons=(), ranks={}
    )
    assert pooled_sentence(found) == (
        "Undecided: whether plasticity (in_situ) predicts accuracy over these 4 data sets is not settled: one standard "
        "deviation more plasticity is worth +1.0 points of accuracy [0.5, 1.5] on the average set, size held fixed, "
        "with a standard deviation of 0.2 between sets; on the next one it is expected in [−0.1, 2.0]; p = 0.050 by "
        "all 120 exchanges of the components’ labels, in every set at once."
    )
