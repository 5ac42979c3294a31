from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from configuring import CONF, composed, run_entry
from omegaconf import OmegaConf

from unfreeze.config import ClusterConfig, Config, PaperSet, SearchConfig, changed_keys, config_to_dict
from unfreeze.errors import ConfigError
from unfreeze.load import load_config

GROUPS = ("model", "data", "search", "cluster")
FILES = [f"{group}={path.stem}" for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
EXPERIMENTS = [path.stem for path in sorted((CONF / "experiment").glob("*.yaml"))]
DEFAULT_FILES = {"model=tiny", "data=digits", "search=components", "cluster=local"}
NEED_NO_PATHS = "data=digits"


def meanings(section: type, prefix: str = "") -> dict[str, str]:
    """Dotted name of every option → what it is said to mean."""
    found: dict[str, str] = {}
    hints = get_type_hints(section)
    for field in fields(section):
        if is_dataclass(hints[field.name]):
            found |= meanings(hints[field.name], f"{prefix}{field.name}.")
        else:
            found[f"{prefix}{field.name}"] = field.metadata.get("help", "")
    return found


def test_every_option_says_what_it_means() -> None:
    found = meanings(Config)
    assert found.keys() == leaf_keys(config_to_dict(Config()))
    assert [name for name, text in found.items() if len(text.strip()) < 5] == []
    assert [name for name, text in found.items() if text != text.strip() or text.endswith(".")] == []


def test_a_list_or_mapping_is_not_shared() -> None:
    Config().model.kwargs["depth"] = 2
    Config().search.baselines.append("mha")
    assert Config() == Config()
    assert (Config().model.kwargs, Config().search.baselines) == ({}, ["all", "none"])


def leaf_keys(tree: Mapping[str, Any], prefix: str = "") -> set[str]:
    keys: set[str] = set()
    for key, value in tree.items():
        keys |= leaf_keys(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}"}
    return keys


def test_a_contradiction_is_refused_in_python_too() -> None:
    with pytest.raises(ValueError, match="must not exceed"):
        SearchConfig(learning_rate_low=1.0, learning_rate_high=0.5)
    with pytest.raises(ValueError, match="go with num_slots=auto, but got num_slots=2"):
        ClusterConfig(num_slots=2, max_slots=4)
    with pytest.raises(ValueError, match="max_slots must be min_slots=3 or more, but got 2"):
        ClusterConfig(min_slots=3, max_slots=2)
    with pytest.raises(ValueError, match=r"one kind with workers_per_trial=2, .* but got \['A100', 'H100'\]"):
        ClusterConfig(workers_per_trial=2, accelerators=["A100", "H100"])


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


def test_a_default_is_typed_once() -> None:
    assert set(OmegaConf.load(CONF / "config.yaml")) == {"defaults", "hydra"}
    defaults = config_to_dict(Config())
    for choice in FILES:
        group, _, name = choice.partition("=")
        own = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))
        assert isinstance(own, dict)
        same = [key for key, value in own.items() if value == defaults[group][key]]
        # Hydra wants some key in a file; the group's default names itself.
        assert same == ([*own] if len(own) == 1 and choice in DEFAULT_FILES else []), choice


def test_the_composed_default_says_what_the_dataclasses_say() -> None:
    yaml, python = OmegaConf.to_container(composed()), config_to_dict(Config())
    assert isinstance(yaml, dict)
    assert leaf_keys(yaml) == leaf_keys(python)
    assert changed_keys(yaml, python) == []
    assert load_config(composed()) == load_config(python)


@pytest.mark.parametrize("choice", FILES)
def test_every_file_of_every_group_loads(choice: str) -> None:
    besides = ["data.path=/images", "data.source_path=/source"]
    if choice == "search=listed":
        besides = ["search.selections=[mha]"]
    elif not choice.startswith("data=") or choice == NEED_NO_PATHS:
        besides = []
    config = load_config(composed(choice, *besides))
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
    config = load_config(composed(f"experiment={name}", "sweep.name=mine"), typed={"sweep.name"})
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
