"""From what the pre-pass measured to a score of every (block, component)."""

from typing import get_args

import pytest

from unfreeze.config import PriorConfig, RivalScore
from unfreeze.errors import ModelError
from unfreeze.load import load_config
from unfreeze.records import COMPONENTS, MODES, PlasticityRow, PlasticityTable
from unfreeze.search.prior import component_means, prior_scores

NUM_BLOCKS = 12


def value_of(name: str, block: int, component: str) -> float:
    """Any, but another one everywhere."""
    return len(name) + 10 * COMPONENTS.index(component) + block**2


@pytest.fixture
def table() -> PlasticityTable:
    rows = [
        PlasticityRow(
            mode=mode, block=block, component=component, mean=mean, sd=0.1, num_pairs=9, low=mean - 1, high=mean + 1
        )
        for mode in MODES
        for component in COMPONENTS
        for block, mean in [
            *((block, value_of(mode, block, component)) for block in range(NUM_BLOCKS)),
            (None, 1000 + value_of(mode, 0, component)),  # found by its block, not made of the others
        ]
    ]
    scores = {
        name: {f"{b}.{c}": value_of(name, b, c) for b in range(NUM_BLOCKS) for c in COMPONENTS}
        for name in get_args(RivalScore)
    }
    return PlasticityTable(
        rows=tuple(rows), skipped_pairs=0, seconds=1.0, model_digest="m", data_digest="d", scores=scores
    )


@pytest.mark.parametrize("score", [*MODES, *get_args(RivalScore)])
def test_a_score_is_what_was_measured_of_each_block(score: str, table: PlasticityTable) -> None:
    found = prior_scores(score, table, num_blocks=NUM_BLOCKS)
    assert found == {(b, c): value_of(score, b, c) for b in range(NUM_BLOCKS) for c in COMPONENTS}
    expected = {c: sum(value_of(score, b, c) for b in range(NUM_BLOCKS)) / NUM_BLOCKS for c in COMPONENTS}
    assert component_means(found) == pytest.approx(expected, rel=1e-12)


def test_reversed_is_minus_the_reference(table: PlasticityTable) -> None:
    reference = prior_scores("reference", table, num_blocks=NUM_BLOCKS)
    reversed_scores = prior_scores("reversed", table, num_blocks=NUM_BLOCKS)
    assert reversed_scores == {member: -value for member, value in reference.items()}


def test_a_table_of_another_model_is_refused(table: PlasticityTable) -> None:
    with pytest.raises(ModelError, match=r"no 12\.ln1, which this model of 24 blocks has: it is of another model"):
        prior_scores("reference", table, num_blocks=24)


def test_uniform_has_no_opinion_and_asks_nothing() -> None:
    nothing = PlasticityTable(rows=(), skipped_pairs=0, seconds=0.0, model_digest="", data_digest="")
    assert component_means(prior_scores("uniform", nothing, num_blocks=3)) == dict.fromkeys(COMPONENTS, 0.0)


@pytest.mark.parametrize("score", [s for member in get_args(PriorConfig.__annotations__["score"]) for s in [member]])
def test_every_score_there_is_to_choose_names_every_component(score: object, table: PlasticityTable) -> None:
    for name in get_args(score) or (score,):
        found = prior_scores(str(name), table, num_blocks=NUM_BLOCKS)
        assert tuple(component_means(found)) == COMPONENTS
        assert len(found) == NUM_BLOCKS * len(COMPONENTS)
        load_config({"search": {"prior": {"score": name}}})
