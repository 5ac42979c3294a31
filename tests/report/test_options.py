import json
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, TypeAdapter

from unfreeze.config import Config, config_to_dict
from unfreeze.report.options import describe_type, list_options
from unfreeze.report.settings import flatten

OPTIONS = {option.name: option for option in list_options()}


def test_every_option_is_there_once_in_the_order_of_the_configuration() -> None:
    assert [option.name for option in list_options()] == list(flatten(config_to_dict(Config())))


def test_defaults_are_those_of_the_dataclasses() -> None:
    wanted = flatten(config_to_dict(Config()))
    for name, option in OPTIONS.items():
        text = wanted[name]
        assert option.default == (", ".join(json.loads(text)).join("[]") if text.startswith("[") else text)


@pytest.mark.parametrize(
    ("name", "default", "allowed"),
    [
        ("sweep.seed", "0", "whole number ≥ 0"),
        ("sweep.name", "sweep", "text like ^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"),
        ("model.image_size", "null", "whole number ≥ 8 | null"),
        ("model.kwargs", "{}", "mapping of text to anything"),
        ("data.val_share", "0.2", "number > 0 and < 1"),
        ("data.severity", "5", "whole number ≥ 1 and ≤ 5"),
        ("data.domain", "null", "clipart | infograph | painting | quickdraw | real | sketch | null"),
        ("plasticity.modes", "[reference, in_situ]", "list of (reference | in_situ | local), at least 1"),
        ("finetune.optimizer", "sgd", "sgd | adamw"),
        ("finetune.shard", "false", "true | false"),
        ("finetune.layer_decay", "1.0", "number > 0 and ≤ 1"),
        (
            "finetune.component_rates",
            "{}",
            "mapping of (ln1 | mha | ln2 | fc1 | fc2 | embed | head) to number ≥ 0",
        ),
        ("search.seeds", "[]", "list of whole number ≥ 0"),
        ("search.baselines", "[all, none]", "list of text"),
        ("search.prior.score", "reference", None),
        ("cluster.num_slots", "auto", "whole number ≥ 1 | auto"),
        ("tracking.uri", "auto", "text | null"),
        ("storage", "./runs", "text"),
        ("dry_run", "false", "true | false"),
    ],
)
def test_an_option_says_its_default_and_what_it_may_be(name: str, default: str, allowed: str | None) -> None:
    assert OPTIONS[name].default == default
    assert allowed is None or OPTIONS[name].allowed == allowed


def test_choices_of_several_kinds_stand_in_one_row() -> None:
    choices = OPTIONS["search.prior.score"].allowed.split(" | ")
    assert choices[:3] == ["reference", "in_situ", "local"]
    assert {"fisher", "uniform", "reversed"} <= set(choices)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Annotated[float, Field(gt=-1.5, le=1e-3)], "number > -1.5 and ≤ 0.001"),
        (Literal["a"] | None, "a | null"),
        (list[Annotated[int, Field(ge=1)] | None], "list of (whole number ≥ 1 | null)"),
        (dict[str, list[Literal["a", "b"]]], "mapping of text to (list of (a | b))"),
    ],
)
def test_an_annotation_in_words(annotation: Any, words: str) -> None:
    assert describe_type(TypeAdapter(annotation).json_schema()) == words


def test_no_constraint_is_passed_over_in_silence() -> None:
    with pytest.raises(AssertionError, match="multipleOf"):
        describe_type(TypeAdapter(Annotated[int, Field(multiple_of=2)]).json_schema())


def test_an_option_goes_by_whole_parts_of_its_name() -> None:
    epochs, score = OPTIONS["finetune.epochs"], OPTIONS["search.prior.score"]
    assert [
        n for n in ("finetune", "finetune.epochs", "epochs", "epoch", "tune", "net.epochs") if epochs.is_called(n)
    ] == [
        "finetune",
        "finetune.epochs",
        "epochs",
    ]
    assert all(score.is_called(name) for name in ("search", "search.prior", "prior", "prior.score", "score"))
    assert [OPTIONS[name].section for name in ("search.prior.score", "storage")] == ["search", None]
