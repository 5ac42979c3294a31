import re
from typing import Any

import pytest
from configuring import problems_of

from unfreeze.errors import ConfigError
from unfreeze.load import load_config


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ({"finetune": {"batch_size": 10}, "cluster": {"workers_per_trial": 4}}, "finetune.batch_size"),
        ({"data": {"name": "cifar10"}}, "data.source_path"),
        ({"data": {"name": "folder", "source_path": "s"}}, "data.path"),
    ],
)
def test_sections_that_contradict_each_other_are_named(raw: dict[str, Any], key: str) -> None:
    assert key in problems_of(raw)[0]


def test_all_contradictions_between_sections_come_at_once() -> None:
    raw = {"finetune": {"batch_size": 3}, "cluster": {"workers_per_trial": 2}, "data": {"name": "folder"}}
    said = "\n".join(problems_of(raw))
    assert all(key in said for key in ("finetune.batch_size", "data.source_path", "data.path"))


def test_contradictions_come_together_with_wrong_values() -> None:
    said = "\n".join(problems_of({"data": {"name": "folder"}, "finetune": {"epochs": 0}}))
    assert all(key in said for key in ("finetune.epochs", "data.source_path"))


def test_dropout_and_kept_activations_exclude_each_other() -> None:
    kwargs = {"proj_drop_rate": 0.1, "attn_drop_rate": 0, "drop_path_rate": 0.2}
    (line,) = problems_of({"model": {"kwargs": kwargs}, "finetune": {"prefix_cache_gib": 1.0}})
    assert "model.kwargs.proj_drop_rate=0.1 makes anew at each step" in line
    load_config({"model": {"kwargs": {"drop_path_rate": 0.2}}, "finetune": {"prefix_cache_gib": 1.0}})
    load_config({"model": {"kwargs": kwargs}})


@pytest.mark.parametrize("name", ["drop_rate", "drop_path_rate", "attn_drop_rate"])
@pytest.mark.parametrize("rate", [-0.5, 1, 1.5])
def test_a_share_to_drop_is_one(name: str, rate: float) -> None:
    (line,) = problems_of({"model": {"kwargs": {name: rate}}})
    assert line.strip() == f"model.kwargs.{name} must be 0 or more and below 1, but got {rate:g}"


def test_a_width_is_above_0() -> None:
    for ratio in (0, 0.0, -4, float("nan")):
        (line,) = problems_of({"model": {"kwargs": {"mlp_ratio": ratio}}})
        assert line.strip() == f"model.kwargs.mlp_ratio must be above 0, but got {ratio:g}"


@pytest.mark.parametrize("name", ["digits", "svhn", "caltech101"])
def test_a_set_of_arrays_does_not_stream(name: str) -> None:
    (line,) = problems_of({"data": {"name": name, "source_path": "s", "loading": "stream"}})
    assert f"data.loading=stream decodes each image from a file of its own, which data={name} does not have" in line
    load_config({"data": {"name": "flowers102", "source_path": "s", "loading": "stream"}})


@pytest.mark.parametrize(("batch_size", "cross", "sound"), [(32, 4, True), (4, 4, True), (30, 4, False), (2, 4, False)])
def test_a_batch_holds_whole_groups(batch_size: int, cross: int, sound: bool) -> None:
    raw = {"plasticity": {"batch_size": batch_size, "cross": cross}}
    if sound:
        assert load_config(raw).plasticity.cross == cross
    else:
        (line,) = problems_of(raw)
        expected = f"plasticity.batch_size must be a multiple of plasticity.cross, but got {batch_size} and {cross}"
        assert line.strip() == expected


GRID = {"space": "grid", "selections": ["mha"], "learning_rates": [0.1], "seeds": [0]}
UNREAD = {
    "data.path": ({"data": {"path": "/birds"}}, r"did you mean data=folder\?"),
    "data.train": ({"data": {"train": "/birds"}}, r"did you mean data=folder\?"),
    "data.test": (
        {"data": {"name": "cifar10", "source_path": "s", "test": "/birds"}},
        "data=cifar10 has parts of its own",
    ),
    "data.severity": ({"data": {"severity": 3}}, "set data.corruption"),
    "data.val_share": (
        {"data": {"name": "folder", "path": "p", "source_path": "s", "val": "/v", "val_share": 0.3}},
        "there are validation images already",
    ),
    "data.subset": ({"data": {"subset": "balanced"}}, "set data.max_train_images or"),
    "data.max_decoded_gib": ({"data": {"loading": "memory", "max_decoded_gib": 1.0}}, "data.loading=memory decides"),
    "data.num_workers": ({"data": {"loading": "memory", "num_workers": 7}}, "held in memory"),
    "plasticity.relative_error": ({"plasticity": {"stop_early": False, "relative_error": 0.1}}, "stop_early=true"),
    "plasticity.score_images": ({"plasticity": {"score_images": 10}}, "list some in plasticity.scores"),
    "finetune.momentum": ({"finetune": {"optimizer": "adamw", "momentum": 0.5}}, "adamw has betas"),
    "finetune.epochs": ({"finetune": {"steps": 5, "epochs": 3.0}}, "finetune.steps=5 decides"),
    "finetune.warmup_share": ({"finetune": {"steps": 5, "warmup_steps": 2, "warmup_share": 0.5}}, "warmup_steps=2"),
    "finetune.lora_alpha": ({"finetune": {"lora_alpha": 8.0}}, "no selection has adapters"),
    "data.crop_share": ({"data": {"crop_share": 0.5}}, "nothing is cropped"),
    "data.exif": ({"data": {"exif": "apply"}}, "no files that a camera wrote"),
    "data.test_share": ({"data": {"name": "cifar10", "source_path": "s", "test_share": 0.3}}, "test images already"),
    "model.resample_patches": ({"model": {"resample_patches": True}}, "set model.weights"),
    "finetune.warmup_from_zero": ({"finetune": {"warmup_share": 0.0, "warmup_from_zero": True}}, "no warm-up"),
    "search.num_trials": ({"search": {**GRID, "num_trials": 5}}, "search=grid tries what it lists"),
    "search.max_flops_share": ({"search": {**GRID, "max_flops_share": 0.5}}, "search=grid tries what it lists"),
    "search.settle": ({"search": {"sampler": "tpe", "settle": 0.5}}, "search.sampler=model"),
    "search.confirm_seeds": ({"search": {"confirm_top": 0, "confirm_seeds": 5}}, "set search.confirm_top"),
    "search.grace_reports": ({"search": {"grace_reports": 1}}, "search.early_stopping=true"),
    "search.learn_from": ({"search": {"learn_from": ["one"], "sampler": "tpe"}}, "search.sampler=model"),
}


@pytest.mark.parametrize("option", UNREAD)
def test_an_option_that_nothing_reads_is_named_with_the_cure(option: str) -> None:
    raw, cure = UNREAD[option]
    (line,) = problems_of(raw)
    assert line.strip().startswith(f"{option}=")
    assert "is read by nothing" in line
    assert re.search(cure, line)


@pytest.mark.parametrize(
    "raw",
    [
        {"data": {"name": "folder", "train": "/birds", "source_path": "s"}},
        {"data": {"severity": 3, "corruption": "fog"}},
        {"data": {"subset": "balanced", "max_val_images": 50}},
        {"plasticity": {"score_images": 10}, "search": {"prior": {"score": "fisher"}}},
        {"finetune": {"lora_alpha": 8.0}, "trial": {"selection": "mha:lora(4)"}},
        {"search": {"grace_reports": 1, "early_stopping": True}},
        {"search": {**GRID, "concurrency": 3, "select_on": "test", "prior": {"score": "uniform"}}},
        {"data": {"exif": "apply", "source_path": "/photographs"}},
    ],
)
def test_an_option_that_is_read_may_be_set(raw: dict[str, Any]) -> None:
    load_config(raw)


def test_what_an_experiment_sets_for_another_search_may_stay() -> None:
    """`experiment=demo search=grid`: the number of trials is for the demo's search. A limit would be passed over."""
    raw = {"search": {**GRID, "num_trials": 5, "learning_rate_low": 0.01}}
    assert load_config(raw, typed=("search",)).search.num_trials == 5
    with pytest.raises(ConfigError, match=r"search\.num_trials=5 is read by nothing"):
        load_config(raw, typed=("search", "search.num_trials"))
    with pytest.raises(ConfigError, match=r"search\.max_flops_share=0\.5 is read by nothing"):
        load_config({"search": {**GRID, "max_flops_share": 0.5}}, typed=())
