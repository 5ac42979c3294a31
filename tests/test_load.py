from pathlib import Path
from typing import get_args

import pytest
from configuring import problems_of
from omegaconf import OmegaConf

from unfreeze.config import PlasticityConfig, RivalScore, config_to_dict
from unfreeze.errors import ConfigError
from unfreeze.load import load_config


def test_all_problems_come_at_once() -> None:
    problems = problems_of(
        {
            "finetune": {"btch_size": 3, "epochs": "3"},
            "search": {"learning_rate_low": 1.0, "learning_rate_high": 0.1},
            "data": {"name": "digitz", "val_share": 1.0},
            "swep": {"name": "x"},
            "tracking": {"uri": "file:/tmp/mlruns"},
        }
    )
    said = "\n".join(problems)
    assert len(problems) == 7
    assert "finetune.btch_size: unknown option; did you mean finetune.batch_size?" in said
    assert "finetune.epochs: " in said
    assert "'3'" in said
    assert "learning_rate_low must not exceed learning_rate_high, but got 1.0 and 0.1" in said
    assert "data.name: " in said
    assert "'digitz'" in said
    assert "'flowers102'" in said
    assert "data.val_share: " in said
    assert "swep: unknown option; did you mean sweep?" in said
    assert "file:/tmp/mlruns" in said


def test_an_unknown_key_without_a_likeness_lists_what_there_is() -> None:
    (line,) = problems_of({"search": {"prior": {"zzz": 1}}})
    assert line.strip() == "search.prior.zzz: unknown option; search.prior has score"


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("plasticity", "num_pairs", "3"),
        ("plasticity", "num_pairs", 3.0),
        ("plasticity", "num_pairs", True),
        ("plasticity", "num_pairs", None),
        ("plasticity", "num_pairs", 1),
        ("finetune", "train_head", 1),
        ("finetune", "train_head", "true"),
        ("finetune", "epochs", "10"),
        ("finetune", "epochs", 0),
        ("finetune", "epochs", float("inf")),
        ("finetune", "momentum", 1.0),
        ("finetune", "momentum", float("nan")),
        ("finetune", "weight_decay", -1e-9),
        ("finetune", "optimizer", "adam"),
        ("finetune", "micro_batch_size", 0),
        ("search", "max_trainable_share", 0),
        ("search", "max_trainable_share", 1.01),
        ("search", "reduction_factor", 1),
        ("search", "start_learning_rates", 0.01),
        ("search", "start_learning_rates", [0.01, "0.02"]),
        ("search", "start_learning_rates", [0.5]),
        ("search", "baselines", ["all", 3]),
        ("search", "prior", None),
        ("cluster", "num_slots", 0),
        ("cluster", "num_slots", "many"),
        ("cluster", "min_slots", 0),
        ("cluster", "max_slots", "many"),
        ("cluster", "address", 1),
        ("data", "max_bad_share", 1),
        ("data", "split_seed", -1),
        ("sweep", "name", ""),
        ("sweep", "name", "../other"),
        ("sweep", "name", "a b"),
        ("sweep", "name", "a\n"),
        ("sweep", "name", 7),
        ("tracking", "uri", "mlruns"),
        ("model", "image_size", 7),
        ("model", "kwargs", [1]),
    ],
)
def test_a_wrong_value_is_named(section: str, key: str, value: object) -> None:
    for line in problems_of({section: {key: value}}):
        assert line.strip().startswith(f"{section}")
        assert key in line


def test_reduction_factor_is_finite() -> None:
    assert problems_of({"search": {"reduction_factor": float("inf")}})


def test_a_whole_number_serves_as_a_share_or_rate() -> None:
    assert load_config({"finetune": {"epochs": 3}}).finetune.epochs == 3.0


def test_an_unresolvable_reference_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        load_config(OmegaConf.create({"storage": "${nowhere}"}))


def test_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    raw = {
        "storage": "runs",
        "model": {"weights": "w.pth"},
        "data": {"name": "folder", "path": "./images", "source_path": "~/source", "cache_dir": "~/cache"},
        "tracking": {"uri": "sqlite:///mlflow.db"},
    }
    config = load_config(raw)
    assert config.storage == f"{tmp_path}/runs"
    assert config.model.weights == f"{tmp_path}/w.pth"
    assert config.data.path == f"{tmp_path}/images"
    assert config.data.source_path == "/home/someone/source"
    assert config.data.cache_dir == "/home/someone/cache"
    assert config.tracking.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert raw["storage"] == "runs"


def test_what_is_no_local_path_stays() -> None:
    raw = {
        "storage": "s3://bucket/runs",
        "model": {"weights": "random"},
        "data": {"name": "folder", "path": "s3://bucket/images", "source_path": "/absolute"},
        "tracking": {"uri": "http://host:5000"},
    }
    config = load_config(raw)
    assert config.storage == "s3://bucket/runs"
    assert config.model.weights == "random"
    assert (config.data.path, config.data.source_path) == ("s3://bucket/images", "/absolute")
    assert config.tracking.uri == "http://host:5000"


def test_config_round_trips() -> None:
    raw = {
        "model": {"kwargs": {"drop_path_rate": 0.1, "nested": {"a": [1, None]}}},
        "search": {"start_learning_rates": [0.01, 0.1 * 0.7], "max_trainable_share": 1 / 3},
        "cluster": {"num_slots": 3},
        "tracking": {"uri": None},
    }
    config = load_config(raw)
    assert load_config(config_to_dict(config)) == config
    assert load_config(OmegaConf.create(config_to_dict(config))) == config


@pytest.mark.parametrize(
    ("score", "modes", "scores"),
    [
        ("reference", ["reference"], []),
        ("in_situ", ["local", "in_situ"], []),
        ("local", ["local"], []),
        ("reversed", ["local", "reference"], []),
        ("uniform", ["local"], []),
        *((name, ["local"], [name]) for name in get_args(RivalScore)),
    ],
)
def test_the_pre_pass_measures_what_the_prior_is_made_of(score: str, modes: list[str], scores: list[str]) -> None:
    given = ["reference"] if score == "reference" else ["local"]
    raw = {"plasticity": {"modes": given}, "search": {"prior": {"score": score}}}
    config = load_config(raw)
    assert (config.plasticity.modes, config.plasticity.scores) == (modes, scores)
    assert given in (["reference"], ["local"])  # what was given is left alone
    assert load_config(config_to_dict(config)) == config  # nothing is added twice


def test_a_score_that_is_asked_for_anyway_is_not_added_again() -> None:
    raw = {"plasticity": {"scores": ["fisher", "parameters"]}, "search": {"prior": {"score": "fisher"}}}
    assert load_config(raw).plasticity.scores == ["fisher", "parameters"]


def test_the_defaults_are_not_shared() -> None:
    """The prior's score is added to a list; it must not be everybody's."""
    load_config({"search": {"prior": {"score": "fisher"}}})
    load_config({"search": {"prior": {"score": "local"}}})
    assert load_config({}).plasticity == PlasticityConfig()
    assert PlasticityConfig().modes == ["reference", "in_situ"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("modes", []),
        ("modes", ["referenc"]),
        ("modes", "reference"),
        ("scores", ["uniform"]),
        ("confidence", 0.5),
        ("confidence", 1.0),
        ("min_observations", 1),
        ("relative_error", -0.1),
        ("relative_error", 1.0),
        ("layer_norm_eps", 0),
        ("precision", "float64"),
        ("num_actors", 0),
        ("seed", -1),
    ],
)
def test_a_wrong_value_of_the_pre_pass_is_named(key: str, value: object) -> None:
    for line in problems_of({"plasticity": {key: value}}):
        assert line.strip().startswith(f"plasticity.{key}")
