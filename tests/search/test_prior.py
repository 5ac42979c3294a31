"""From what the pre-pass measured to one score per component."""

from typing import get_args

import pytest

from unfreeze.config import PriorConfig, RivalScore
from unfreeze.load import load_config
from unfreeze.records import COMPONENTS, MODES, PlasticityRow, PlasticityTable
from unfreeze.search.prior import prior_scores

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


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_s_score_is_its_plasticity_over_all_blocks(mode: str, table: PlasticityTable) -> None:
    expected = {component: 1000 + value_of(mode, 0, component) for component in COMPONENTS}
    assert prior_scores(mode, table) == expected


@pytest.mark.parametrize("score", get_args(RivalScore))
def test_a_rival_s_groups_are_averaged_over_blocks(score: str, table: PlasticityTable) -> None:
    expected = {c: sum(value_of(score, b, c) for b in range(NUM_BLOCKS)) / NUM_BLOCKS for c in COMPONENTS}
    assert prior_scores(score, table) == pytest.approx(expected, rel=1e-12)


def test_reversed_is_minus_the_reference(table: PlasticityTable) -> None:
    reference = prior_scores("reference", table)
    assert prior_scores("reversed", table) == {component: -value for component, value in reference.items()}


def test_uniform_has_no_opinion_and_asks_nothing() -> None:
    nothing = PlasticityTable(rows=(), skipped_pairs=0, seconds=0.0, model_digest="", data_digest="")
    assert prior_scores("uniform", nothing) == dict.fromkeys(COMPONENTS, 0.0)


@pytest.mark.parametrize("score", [s for member in get_args(PriorConfig.__annotations__["score"]) for s in [member]])
def test_every_score_there_is_to_choose_names_every_component(score: object, table: PlasticityTable) -> None:
    for name in get_args(score) or (score,):
        assert tuple(prior_scores(str(name), table)) == COMPONENTS
        load_config({"search": {"prior": {"score": name}}})
