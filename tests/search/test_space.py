from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfreeze.components.selection import Selection, parse_selection
from unfreeze.config import FinetuneConfig, SearchConfig
from unfreeze.cost.model import CostModel
from unfreeze.errors import BudgetError, ModelError, SelectionError
from unfreeze.records import COMPONENTS, ModelFacts
from unfreeze.search.space import LEARNING_RATE, SearchSpace, make_space

SPACES = ("components", "depth", "blocks")


def facts(num_blocks: int) -> ModelFacts:
    sizes = {"ln1": 2, "mha": 100, "ln2": 2, "fc1": 80, "fc2": 70}
    parameters = {f"{b}.{c}": sizes[c] for b in range(num_blocks) for c in COMPONENTS} | {"embed": 50, "head": 10}
    return ModelFacts(
        name="toy", digest="", num_blocks=num_blocks, parameters=parameters, image_size=32, create_kwargs={}
    )


def space_of(kind: str, num_blocks: int = 6, *, train_head: bool = True, **settings: object) -> SearchSpace:
    cost = CostModel(facts(num_blocks), FinetuneConfig(train_head=train_head))
    return make_space(SearchConfig(space=kind, **settings), cost)


@pytest.mark.parametrize(("kind", "count"), [("components", 5), ("depth", 15), ("blocks", 30)])
def test_number_of_switches(kind: str, count: int) -> None:
    assert len(space_of(kind).switches) == count


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("num_blocks", [1, 2, 3, 4, 6, 7, 12])
def test_switches_share_out_every_block_and_component(kind: str, num_blocks: int) -> None:
    switches = space_of(kind, num_blocks).switches.values()
    assert all(switches)
    pairs = [pair for switch in switches for pair in switch]
    assert sorted(pairs) == sorted((block, name) for block in range(num_blocks) for name in COMPONENTS)


@pytest.mark.parametrize("num_blocks", [3, 4, 5, 7, 12, 24])
def test_thirds_are_consecutive_and_even(num_blocks: int) -> None:
    switches = space_of("depth", num_blocks).switches
    thirds = [sorted(block for block, _ in switches[f"mha@{third}"]) for third in ("early", "middle", "late")]
    assert [block for third in thirds for block in third] == list(range(num_blocks))
    sizes = [len(third) for third in thirds]
    assert max(sizes) - min(sizes) <= 1
    assert all(before[-1] + 1 == after[0] for before, after in pairwise(thirds))


@settings(deadline=None, max_examples=60)
@given(draw=st.data(), kind=st.sampled_from(SPACES), num_blocks=st.integers(1, 12))
def test_parameters_and_selection_round_trip(draw: st.DataObject, kind: str, num_blocks: int) -> None:
    space = space_of(kind, num_blocks)
    params = {name: draw.draw(st.booleans()) for name in space.switches} | {LEARNING_RATE: 0.02}
    selection = space.selection(params)
    assert space.params(selection, 0.02) == params
    assert parse_selection(str(selection), num_blocks=num_blocks) == selection
    assert set(params) == set(space.distributions)


def test_the_baselines_as_parameters() -> None:
    space = space_of("depth")
    for text, value in (("all", True), ("none", False)):
        params = space.params(parse_selection(text, num_blocks=6), 0.01)
        assert {params[name] for name in space.switches} == {value}


def test_the_count_includes_the_head_when_it_is_trained() -> None:
    selection = parse_selection("mha@0-1+embed", num_blocks=6)
    assert space_of("blocks").cost.num_trained(selection) == 2 * 100 + 50 + 10
    assert space_of("blocks", train_head=False).cost.num_trained(selection) == 2 * 100 + 50


def test_an_empty_selection_is_no_point() -> None:
    space = space_of("components")
    empty = Selection(6, frozenset())
    assert space.fits(empty)
    assert not space.allows(empty)


@pytest.mark.parametrize("kind", SPACES)
def test_what_exactly_fits_is_allowed(kind: str) -> None:
    model = facts(6)
    budget = (6 * 100 + 10) / model.num_parameters
    space = space_of(kind, max_trainable_share=budget)
    assert space.allows(parse_selection("mha", num_blocks=6))
    assert not space.allows(parse_selection("mha+ln1@0", num_blocks=6))


@pytest.mark.parametrize(
    ("kind", "smallest", "parameters"), [("components", "ln1", 12), ("depth", "ln1@0-1", 4), ("blocks", "ln1@0", 2)]
)
def test_when_nothing_fits_the_smallest_is_named(kind: str, smallest: str, parameters: int) -> None:
    total = facts(6).num_parameters
    share = (parameters + 10 - 0.5) / total
    with pytest.raises(BudgetError, match=rf"the smallest, {smallest}, .* trains {(parameters + 10) / total:.2%}"):
        space_of(kind, max_trainable_share=share)
    space_of(kind, max_trainable_share=(parameters + 10.5) / total)


def test_without_the_head_more_fits() -> None:
    share = 12.5 / facts(6).num_parameters
    with pytest.raises(BudgetError):
        space_of("components", max_trainable_share=share)
    assert space_of("components", max_trainable_share=share, train_head=False).max_trainable == 12


def test_a_baseline_with_lora_counts_its_adapters_and_is_no_point_of_the_space() -> None:
    model = replace(facts(6), width=16, lora_sizes={f"{block}.mha": 30 for block in range(6)})
    space = make_space(SearchConfig(baselines=["mha:lora(4)"]), CostModel(model, FinetuneConfig()))
    selection = parse_selection("mha:lora(4)", num_blocks=6)
    assert space.cost.num_trained(selection) == 6 * 4 * 30 + 10
    assert not space.allows(selection)
    assert not any(value is True for value in space.params(selection, 0.01).values())
    with pytest.raises(SelectionError, match=r"no linear layers that LoRA can adapt in 2\.fc1"):
        space.cost.num_trained(parse_selection("fc1@2:lora(4)", num_blocks=6))


def test_a_baseline_whose_rank_exceeds_the_width_is_refused_before_anything_starts() -> None:
    with pytest.raises(SelectionError, match=r"rank 17 exceeds the model's width; choose 1 to 16"):
        make_space(
            SearchConfig(baselines=["none", "fc2:lora(17)"]), CostModel(replace(facts(6), width=16), FinetuneConfig())
        )


# --- cost -------------------------------------------------------------------------------------------------------------


def costed_space(kind: str = "components", **settings: object) -> SearchSpace:
    """DeiT-Tiny's shape in four blocks, 64 px."""
    sizes = {"ln1": 384, "mha": 148_224, "ln2": 384, "fc1": 148_224, "fc2": 147_648}
    parameters = {f"{b}.{c}": sizes[c] for b in range(4) for c in COMPONENTS} | {"embed": 151_104, "head": 2314}
    model = ModelFacts(
        name="deit",
        digest="",
        num_blocks=4,
        parameters=parameters,
        image_size=64,
        create_kwargs={},
        num_tokens=17,
        width=192,
    )
    return make_space(SearchConfig(space=kind, **settings), CostModel(model, FinetuneConfig(eval_batch_size=1)))


def test_flops_limit_what_fits() -> None:
    """Deep blocks cost less than their share of parameters: the gradient need not go below them."""
    space = costed_space("blocks", max_flops_share=0.5)
    fitting = {text: space.fits(parse_selection(text, num_blocks=4)) for text in ("mha@3", "fc1@3+fc2@3", "mha@0")}
    assert fitting == {"mha@3": True, "fc1@3+fc2@3": True, "mha@0": False}
    assert all(
        space.cost.flops_share(parse_selection(text, num_blocks=4)) <= 0.5 for text, fits in fitting.items() if fits
    )


def test_memory_limits_what_fits() -> None:
    free = costed_space("blocks")
    peaks = {text: free.cost.memory(parse_selection(text, num_blocks=4)).peak for text in ("mha@3", "mha@1-3", "all")}
    assert list(peaks.values()) == sorted(peaks.values())
    space = costed_space("blocks", max_memory_gib=(peaks["mha@3"] + peaks["mha@1-3"]) / 2 / 2**30)
    fits = [space.fits(parse_selection(text, num_blocks=4)) for text in peaks]
    assert fits == [True, False, False]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"max_flops_share": 0.4}, r"search\.max_flops_share=0\.4: it computes \d\d\.\d\d% of"),
        ({"max_memory_gib": 0.01}, r"search\.max_memory_gib=0\.01: a worker would take 0\.\d+ GiB"),
        (
            {"max_flops_share": 0.4, "max_memory_gib": 0.01, "max_trainable_share": 0.001},
            r"max_trainable_share=0\.001.* and search\.max_flops_share=0\.4.* and search\.max_memory_gib=0\.01",
        ),
    ],
)
def test_the_limits_that_nothing_fits_are_named(settings: dict[str, float], named: str) -> None:
    with pytest.raises(BudgetError, match=named):
        costed_space(**settings)


def test_the_smallest_by_one_limit_is_not_that_by_another() -> None:
    """FC2 of the last block computes least, its norms train least; one of them fits, so the space is not empty."""
    last_fc2 = costed_space("blocks").cost.flops_share(parse_selection("fc2@3", num_blocks=4))
    space = costed_space("blocks", max_flops_share=last_fc2)
    assert space.allows(parse_selection("fc2@3", num_blocks=4))
    assert not space.allows(parse_selection("ln1@3", num_blocks=4))


@pytest.mark.parametrize("settings", [{"max_flops_share": 0.9}, {"max_memory_gib": 1.0}, {"objective": "pareto"}])
def test_facts_without_tokens_are_refused_where_cost_is_asked_for(settings: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="lack the number and width"):
        space_of("components", **settings)


# --- a list of one's own ----------------------------------------------------------------------------------------------


def test_a_list_has_as_few_switches_as_tell_its_selections_apart() -> None:
    space = space_of("listed", 12, selections=["mha", "mha@6-11+fc1", "fc1+fc2"])
    assert set(space.switches) == {"mha@0-5", "mha@6-11", "fc1", "fc2"}
    assert [str(own) for own in space.listed] == ["mha", "mha@6-11+fc1", "fc1+fc2"]
    allowed = {"mha": True, "fc1+fc2": True, "fc1": False, "mha@0-5": False, "all": False}
    assert {text: space.allows(parse_selection(text, num_blocks=12)) for text in allowed} == allowed
    params = space.params(space.listed[1], 0.02)
    assert space.selection(params) == space.listed[1]
    assert params.keys() == space.distributions.keys()


@pytest.mark.parametrize(
    ("selections", "message"),
    [
        (["mha", "fc1", "mha@0-5"], "'mha' and 'mha@0-5', which are the same"),
        (["mha", "fc1", "mha"], "'mha' and 'mha', which are the same"),
        (["mha", "all"], "has 'all'; compare it as one of search.baselines"),
        (["none"], "has 'none'"),
        (["mha:lora(2)"], r"has 'mha:lora\(2\)'"),
    ],
)
def test_what_a_list_cannot_hold_is_refused(selections: list[str], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        space_of("listed", selections=selections)


def test_a_list_of_which_nothing_fits_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"no selection of search\.space=listed fits; the smallest, fc2, passes"):
        space_of("listed", selections=["mha+fc1", "fc2"], max_trainable_share=0.01)
