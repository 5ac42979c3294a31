from itertools import product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfreeze.components.selection import ADAPTABLE, Selection, count_trainable, parse_selection, select_components
from unfreeze.errors import SelectionError
from unfreeze.records import COMPONENTS


@st.composite
def selections(draw: st.DrawFn) -> Selection:
    num_blocks = draw(st.integers(1, 13))
    whole = draw(st.sets(st.sampled_from(COMPONENTS)))
    scattered = draw(st.sets(st.tuples(st.integers(0, num_blocks - 1), st.sampled_from(COMPONENTS))))
    members = scattered | set(product(range(num_blocks), whole))
    free = sorted(set(product(range(num_blocks), ADAPTABLE)) - members)
    adapted = draw(st.sets(st.sampled_from(free))) if free else set()
    lora = {(block, name, draw(st.integers(1, 3))) for block, name in adapted}
    return Selection(num_blocks, frozenset(members), draw(st.booleans()), frozenset(lora))


@settings(deadline=None, database=None)
@given(selections())
def test_text_round_trips(selection: Selection) -> None:
    text = str(selection)
    assert parse_selection(text, num_blocks=selection.num_blocks) == selection
    assert str(parse_selection(text, num_blocks=selection.num_blocks)) == text


@settings(deadline=None, database=None)
@given(selections(), st.randoms(use_true_random=False))
def test_every_spelling_gives_the_same_text(selection: Selection, random: Random) -> None:
    terms = [f"{component}@{block}" for block, component in selection.members] + ["embed"] * selection.embed
    terms += [f"{component}@{block}:lora({rank})" for block, component, rank in selection.lora]
    if not terms:
        return
    terms += random.choices(terms, k=2)
    random.shuffle(terms)
    spelled = parse_selection(" + ".join(terms), num_blocks=selection.num_blocks)
    assert spelled == selection
    assert hash(spelled) == hash(selection)
    assert str(spelled) == str(selection)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("none", "none"),
        ("all", "all"),
        ("mha", "mha"),
        ("mha@0-11", "mha"),
        ("fc1+mha", "mha+fc1"),
        ("mha@6-11+fc2@0-3", "mha@6-11+fc2@0-3"),
        ("mha@3+mha@1+mha@2", "mha@1-3"),
        ("mha@1+mha@3-4", "mha@1+mha@3-4"),
        ("mha@5-5", "mha@5"),
        ("mha+mha@2", "mha"),
        ("fc2@0+ln1+embed", "embed+ln1+fc2@0"),
        ("embed", "embed"),
        ("ln1+mha+ln2+fc1+fc2", "ln1+mha+ln2+fc1+fc2"),
        ("embed+ln1+mha+ln2+fc1+fc2", "all"),
        ("mha@00-05", "mha@0-5"),
        ("mha:lora(8)", "mha:lora(8)"),
        ("fc1+mha@6-11:lora(8)", "mha@6-11:lora(8)+fc1"),
        ("fc2:lora(4)+fc1:lora(4)", "fc1:lora(4)+fc2:lora(4)"),
        ("mha@0-11:lora(08)+embed", "embed+mha:lora(8)"),
        ("mha@6-11:lora(8)+mha@0-5", "mha@0-5+mha@6-11:lora(8)"),
        ("mha@4-11:lora(8)+mha@0-3:lora(2)", "mha@0-3:lora(2)+mha@4-11:lora(8)"),
        ("mha:lora(2)+mha@3:lora(2)", "mha:lora(2)"),
    ],
)
def test_canonical_text(text: str, canonical: str) -> None:
    assert str(parse_selection(text, num_blocks=12)) == canonical


def test_what_a_selection_holds() -> None:
    selection = parse_selection("fc2@1+mha@0-1+embed", num_blocks=3)
    assert selection.members == {(0, "mha"), (1, "mha"), (1, "fc2")}
    assert selection.components == ("mha", "fc2")
    assert selection.groups == {"0.mha", "1.mha", "1.fc2", "embed"}
    assert parse_selection("none", num_blocks=3).groups == frozenset()
    assert len(parse_selection("all", num_blocks=3).groups) == 16


def test_what_a_selection_with_lora_holds() -> None:
    selection = parse_selection("fc1@1:lora(4)+mha@2:lora(2)+ln1@0", num_blocks=3)
    assert selection.members == {(0, "ln1")}
    assert selection.lora == {(1, "fc1", 4), (2, "mha", 2)}
    assert selection.components == ("ln1",)
    assert selection.groups == {"0.ln1"}
    assert selection.ranks == {"1.fc1": 4, "2.mha": 2}
    assert selection.touched == {(0, "ln1"), (1, "fc1"), (2, "mha")}
    assert selection != parse_selection("fc1@1:lora(4)+mha@2:lora(3)+ln1@0", num_blocks=3)
    assert (
        count_trainable(
            selection, {"0.ln1": 10, "1.fc1": 1000, "head": 5}, train_head=True, lora_sizes={"1.fc1": 7, "2.mha": 9}
        )
        == 10 + 4 * 7 + 2 * 9 + 5
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mha+mha:lora(8)", "mha of block 0 would be trained whole and by lora(8)"),
        ("mha@0-6:lora(8)+mha@6", "mha of block 6 would be trained whole and by lora(8)"),
        ("fc1:lora(8)+fc1@2-3:lora(4)", "fc1 of block 2 would be trained by lora(4) and by lora(8)"),
    ],
)
def test_one_component_cannot_be_trained_in_two_ways(text: str, says: str) -> None:
    with pytest.raises(SelectionError) as caught:
        parse_selection(text, num_blocks=12)
    assert str(caught.value).startswith(says)


def test_all_is_more_than_every_component() -> None:
    assert select_components(COMPONENTS, num_blocks=4) != parse_selection("all", num_blocks=4)
    assert select_components(["fc1", "mha"], num_blocks=4) == parse_selection("mha+fc1", num_blocks=4)
    assert str(select_components([], num_blocks=4)) == "none"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "''"),
        ("+", "''"),
        ("mha+", "''"),
        ("mha++fc1", "''"),
        ("mha fc1", "'mha fc1'"),
        ("mha,fc1", "'mha,fc1'"),
        ("MHA", "'MHA'"),
        ("attn", "'attn'"),
        ("head", "'head'"),
        ("3.mha", "'3.mha'"),
        ("mha@", "'mha@'"),
        ("mha@1-", "'mha@1-'"),
        ("mha@-1", "'mha@-1'"),
        ("mha@1-2-3", "'mha@1-2-3'"),
        ("mha@a", "'mha@a'"),
        ("mha@1.5", "'mha@1.5'"),
        ("mha@12", "12-12"),
        ("mha@6-12", "6-12"),
        ("mha@5-3", "5-3"),
        ("embed@0", "'embed'"),
        ("all+mha", "'all'"),
        ("mha+none", "'none'"),
        ("all@3", "'all'"),
        ("all:lora(8)", "'all'"),
        ("ln1:lora(8)", "'ln1:lora(8)'"),
        ("ln2@3:lora(8)", "'ln2@3:lora(8)'"),
        ("embed:lora(8)", "'embed'"),
        ("mha:lora(0)", "'mha:lora(0)'"),
        ("mha:lora", "'mha:lora'"),
        ("mha:lora()", "'mha:lora()'"),
        ("mha:lora(-1)", "'mha:lora(-1)'"),
        ("mha:lora(1.5)", "'mha:lora(1.5)'"),
        ("mha:lora(8)@3", "'mha:lora(8)@3'"),
        ("mha:dora(8)", "'mha:dora(8)'"),
        ("mha@12:lora(8)", "12-12"),
    ],
)
def test_a_text_that_means_nothing_lists_what_exists(text: str, says: str) -> None:
    with pytest.raises(SelectionError) as caught:
        parse_selection(text, num_blocks=12)
    said = str(caught.value)
    assert says in said
    assert "ln1, mha, ln2, fc1, fc2, embed; blocks 0 to 11; or 'all', 'none'" in said
    assert "mha, fc1, fc2 also as mha:lora(8), of rank 1 or more" in said
