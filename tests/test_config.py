import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from unfreeze.config import (
    Config,
    PaperSet,
    PlasticityConfig,
    RivalScore,
    SearchConfig,
    changed_keys,
    config_to_dict,
    load_config,
)
from unfreeze.errors import ConfigError

SWEEPS = Path(__file__).resolve().parent.parent / "sweeps"
CONF = SWEEPS / "conf"
GROUPS = ("model", "data", "search", "cluster")
FILES = [f"{group}={path.stem}" for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
EXPERIMENTS = [path.stem for path in sorted((CONF / "experiment").glob("*.yaml"))]
NEED_NO_PATHS = "data=digits"


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def problems_of(raw: Mapping[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(raw)
    return str(caught.value).splitlines()[1:]


def leaf_keys(tree: Mapping[str, Any], prefix: str = "") -> set[str]:
    keys: set[str] = set()
    for key, value in tree.items():
        keys |= leaf_keys(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}"}
    return keys


def run_entry(folder: Path, *arguments: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *flags, str(SWEEPS / "vit_components.py"), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )


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


def test_a_contradiction_is_refused_in_python_too() -> None:
    with pytest.raises(ValueError, match="must not exceed"):
        SearchConfig(learning_rate_low=1.0, learning_rate_high=0.5)


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


def test_changed_keys_name_both_values() -> None:
    before, after = config_to_dict(Config()), config_to_dict(Config())
    assert changed_keys(before, after) == []
    after["finetune"]["epochs"] = 3.0
    after["search"]["prior"]["score"] = "uniform"
    del after["trial"]["seed"]
    after["model"]["kwargs"] = {"depth": 2}
    assert changed_keys(before, after) == [
        "finetune.epochs: stored 10.0, now 3.0",
        "model.kwargs.depth: stored None, now 2",
        "search.prior.score: stored 'reference', now 'uniform'",
        "trial.seed: stored 0, now None",
    ]


def test_the_composed_default_says_what_the_dataclasses_say() -> None:
    yaml, python = OmegaConf.to_container(composed()), config_to_dict(Config())
    assert isinstance(yaml, dict)
    assert leaf_keys(yaml) == leaf_keys(python)
    assert changed_keys(yaml, python) == []
    assert load_config(composed()) == load_config(python)


@pytest.mark.parametrize("choice", FILES)
def test_every_file_of_every_group_loads(choice: str) -> None:
    paths = ["data.path=/images", "data.source_path=/source"]
    config = load_config(composed(choice, *(paths if choice.startswith("data=") and choice != NEED_NO_PATHS else [])))
    if choice.startswith("data="):
        assert config.data.name == choice.removeprefix("data=")
    if choice.startswith("search="):
        assert config.search.space == choice.removeprefix("search=")


@pytest.mark.parametrize("choice", [c for c in FILES if c.startswith("data=") and c != NEED_NO_PATHS])
def test_data_without_a_source_domain_says_so(choice: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.source_path"):
        load_config(composed(choice))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_loads_and_yields_to_the_command_line(name: str) -> None:
    config = load_config(composed(f"experiment={name}", "sweep.name=mine"))
    assert config.sweep.name == "mine"
    assert changed_keys(config_to_dict(load_config(composed())), config_to_dict(config)) != []


PAPER_STEPS = {"flowers102": 5_000, "pet": 4_000, "domainnet_clipart": 20_000, "domainnet_sketch": 20_000}


@pytest.mark.parametrize("name", get_args(PaperSet))
def test_the_paper_s_protocol_on_each_of_its_sets(name: str) -> None:
    config = load_config(composed(f"experiment=paper_{name}", "paper.root=/data"))
    finetune, search = config.finetune, config.search
    assert config.sweep.name == f"paper-{name}"
    assert (config.model.name, config.model.layer_norm_eps) == ("vit_base_patch16_224.orig_in21k", 1e-12)
    assert (config.model.normalization, config.data.interpolation) == ("imagenet", "bilinear")
    assert (config.data.augment, config.data.crop_share, config.data.val_share) == ("crop_flip", 1.0, 0.2)
    assert config.data.source_path == "/data/source"
    assert config.data.path is not None
    assert config.data.path.startswith("/data/")
    corrupted = name.startswith("cifar10c_")
    assert config.data.corruption == (name.removeprefix("cifar10c_") if corrupted else None)
    assert config.data.severity == 5
    assert config.data.loading == ("memory" if name.startswith("cifar") else "stream")
    assert finetune.steps == PAPER_STEPS.get(name, 10_000)
    assert finetune.num_reports * 1_000 == finetune.steps
    assert (finetune.optimizer, finetune.momentum, finetune.weight_decay) == ("sgd", 0.9, 0.0)
    assert (finetune.batch_size, finetune.micro_batch_size, finetune.clip_norm) == (512, 128, 1.0)
    assert (finetune.warmup_steps, finetune.warmup_from_zero, finetune.precision) == (2_000, True, "float32")
    assert search.selections == ["all", "embed", "ln1", "mha", "ln2", "fc1", "fc2"]
    assert search.seeds == [0, 42, 3407]
    low, high = (3e-3, 6e-2) if config.data.name == "domainnet" else (1e-3, 3e-2)
    assert (len(search.learning_rates), min(search.learning_rates), max(search.learning_rates)) == (4, low, high)
    assert (search.space, search.select_on) == ("grid", "val")


def test_there_is_an_experiment_for_each_set_of_the_paper_and_no_other() -> None:
    assert sorted(n.removeprefix("paper_") for n in EXPERIMENTS if n.startswith("paper_")) == sorted(get_args(PaperSet))


def test_at_most_five_groups() -> None:
    assert sorted(path.name for path in CONF.iterdir() if path.is_dir()) == sorted([*GROUPS, "experiment"])


def test_help_is_quick(tmp_path: Path) -> None:
    result = run_entry(tmp_path, "--help", flags=("-X", "importtime"))
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in result.stderr.splitlines()}
    assert result.returncode == 0
    assert "unfreeze" in result.stdout
    assert "hydra" in imported
    assert not imported & {"torch", "ray", "mlflow", "optuna", "timm"}


def test_the_command_lists_every_typo_and_starts_nothing(tmp_path: Path) -> None:
    result = run_entry(tmp_path, "finetune.btch_size=3", "searhc.num_trials=2", "sweep.seed=-1")
    assert result.returncode == 2
    assert "finetune.batch_size?" in result.stderr
    assert "did you mean search?" in result.stderr
    assert "sweep.seed" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


# --- what the pre-pass measures ---------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(("batch_size", "cross", "sound"), [(32, 4, True), (4, 4, True), (30, 4, False), (2, 4, False)])
def test_a_batch_holds_whole_groups(batch_size: int, cross: int, sound: bool) -> None:
    raw = {"plasticity": {"batch_size": batch_size, "cross": cross}}
    if sound:
        assert load_config(raw).plasticity.cross == cross
    else:
        (line,) = problems_of(raw)
        expected = f"plasticity.batch_size must be a multiple of plasticity.cross, but got {batch_size} and {cross}"
        assert line.strip() == expected


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
