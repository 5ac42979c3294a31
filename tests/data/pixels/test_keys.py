"""No cache forgets an option: each moves the key, or is listed as irrelevant to what is kept."""

from dataclasses import dataclass
from typing import get_args

import pytest
from flipped import EVERY_OPTION, FLIPPED, flipped

from unfreeze.config import DataConfig, ModelConfig, PlasticityConfig
from unfreeze.data.pixels import keys
from unfreeze.data.pixels.keys import FORMATS, IRRELEVANT, Kind, digest_of, specification

KINDS = get_args(Kind)


def test_every_option_has_another_value_to_try() -> None:
    assert set(FLIPPED) == set(EVERY_OPTION)
    assert all(flipped(option) != flipped(None) for option in EVERY_OPTION)


def test_nothing_is_listed_that_is_no_option() -> None:
    assert set(IRRELEVANT) == set(FORMATS) == set(KINDS)
    assert set().union(*IRRELEVANT.values()) <= {*EVERY_OPTION, "model", "data", "plasticity"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("option", EVERY_OPTION)
def test_an_option_moves_the_key_or_is_listed(kind: Kind, option: str) -> None:
    moved = digest_of(specification(kind, *flipped(option))) != digest_of(specification(kind, *flipped(None)))
    assert moved != bool({option, option.partition(".")[0]} & IRRELEVANT[kind])


def test_a_new_option_is_in_every_key_that_looks_at_its_section(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(kw_only=True, slots=True)
    class Later(DataConfig):
        sharpened: bool = False

    for kind in KINDS:
        model, plasticity = ModelConfig(), PlasticityConfig()
        before, after = (specification(kind, model, Later(sharpened=value), plasticity) for value in (False, True))
        assert before != after


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("raised", ["its own", "decoded"])
def test_another_format_is_another_key(kind: Kind, raised: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest_of(specification(kind, *flipped(None)))
    own = kind if raised == "its own" else "decoded"
    monkeypatch.setitem(keys.FORMATS, own, FORMATS[own] + 1)
    assert digest_of(specification(kind, *flipped(None))) != before


def test_a_section_that_matters_cannot_be_left_out() -> None:
    with pytest.raises(AssertionError, match="model"):
        specification("prefix", DataConfig())


def test_the_order_of_modes_and_scores_says_nothing() -> None:
    ours = PlasticityConfig(modes=["local", "reference"], scores=["fisher", "sensitivity"])
    theirs = PlasticityConfig(modes=["reference", "local"], scores=["sensitivity", "fisher"])
    model, data = ModelConfig(), DataConfig()
    assert specification("inputs", model, data, ours) == specification("inputs", model, data, theirs)
