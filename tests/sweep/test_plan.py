"""What a dry run says: FLOPs against torch's own count, sizes against the splits that are really made."""

from pathlib import Path
from typing import Any

import boto3
import pytest
from PIL import Image

from unfreeze.components.selection import parse_selection
from unfreeze.config import Config, DataConfig, ModelConfig
from unfreeze.cost.model import cost_model
from unfreeze.data.sets.catalog import load_train_val
from unfreeze.errors import ConfigError, DataError, ModelError, SelectionError
from unfreeze.load import load_config
from unfreeze.models.build import build_model
from unfreeze.storage.base import open_storage
from unfreeze.sweep.plan import part_sizes, plan_sweep, terminal_plan

GRID = {
    "space": "grid",
    "selections": ["none", "mha", "all"],
    "learning_rates": [0.01, 0.1],
    "seeds": [0, 1, 2],
}


def grid_config(**search: Any) -> Config:
    finetune = {"steps": 50, "batch_size": 16, "num_reports": 5, "precision": "float32"}
    return load_config({"finetune": finetune, "search": {**GRID, **search}})


def test_a_grid_run_by_run() -> None:
    config = grid_config()
    plan = plan_sweep(config)
    data = load_train_val(config.data, image_size=32)
    cost = cost_model(config, build_model(config.model, num_classes=1, cache_dir=Path()).facts)
    per_image = sum(cost.flops(parse_selection(text, num_blocks=6)).total for text in GRID["selections"])
    evaluated = 18 * 5 * cost.validation_flops(plan.sizes.val)
    assert (plan.num_runs, plan.steps, plan.images_per_run, plan.images) == (18, 50, 800, 18 * 800)
    assert plan.val_images_per_run == 5 * plan.sizes.val
    assert plan.flops == pytest.approx(6 * 800 * per_image + evaluated)
    assert plan.gpu_hours == pytest.approx(plan.flops / 40e12 / 3600)
    assert plan.sizes.train == pytest.approx(len(data.train), abs=10)
    assert plan.sizes.val == pytest.approx(len(data.val), abs=10)
    assert plan.sizes.test == pytest.approx(data.num_test, abs=10)


def test_the_test_images_count_where_they_choose() -> None:
    val, test = plan_sweep(grid_config()), plan_sweep(grid_config(select_on="test"))
    cost = cost_model(grid_config(), build_model(ModelConfig(), num_classes=1, cache_dir=Path()).facts)
    assert test.flops - val.flops == pytest.approx(18 * cost.validation_flops(test.sizes.test))


def test_a_search_is_priced_as_if_each_run_trained_everything() -> None:
    finetune = {"steps": 50, "batch_size": 16, "num_reports": 1}
    config = load_config({"search": {"num_trials": 5, "confirm_top": 2}, "finetune": finetune})
    plan = plan_sweep(config)
    assert plan.num_runs == 5 + 2 * 2
    cost = cost_model(config, build_model(ModelConfig(), num_classes=1, cache_dir=Path()).facts)
    everything = cost.flops(parse_selection("all", num_blocks=6)).total
    assert plan.flops >= 9 * 800 * everything
    assert plan.precision == "bfloat16"


def test_what_is_wrong_is_said_without_starting() -> None:
    with pytest.raises(SelectionError, match="attention"):
        plan_sweep(grid_config(selections=["attention"]))
    with pytest.raises(ConfigError, match=r"search\.max_trainable_share"):
        plan_sweep(grid_config(max_trainable_share=0.5))
    with pytest.raises(ModelError, match="no_such_model"):
        plan_sweep(load_config({"model": {"name": "no_such_model"}}))


@pytest.mark.parametrize(
    ("settings", "train", "val", "test"),
    [
        ({"name": "cifar10"}, 40_000, 10_000, 10_000),
        ({"name": "cifar10", "max_train_images": 500, "max_val_images": 100}, 500, 100, 10_000),
        ({"name": "cifar10c", "path": "/none", "corruption": "snow"}, 6_400, 1_600, 2_000),
        ({"name": "flowers102"}, 1_020, 1_020, 6_149),
        ({"name": "pet"}, 2_944, 736, 3_669),
        ({"name": "domainnet", "path": "/none", "domain": "sketch"}, 44_242, 11_060, 13_826),
    ],
)
def test_sizes_of_known_sets_need_no_data(settings: dict[str, Any], train: int, val: int, test: int) -> None:
    sizes = part_sizes(DataConfig(**settings))
    assert (sizes.train, sizes.val, sizes.test) == (train, val, test)


def make_tree(root: Path, counts: dict[str, int]) -> None:
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(root / folder / f"{number}.png")


@pytest.mark.parametrize(
    "counts",
    [
        {"a": 20, "b": 10},
        {"train/a": 10, "train/b": 20},
        {"train/a": 10, "train/b": 10, "val/a": 3, "val/b": 2, "test/a": 4, "test/b": 4},
    ],
)
def test_a_folder_is_counted(counts: dict[str, int], tmp_path: Path) -> None:
    make_tree(tmp_path / "set", counts)
    config = DataConfig(name="folder", path=str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    sizes, data = part_sizes(config), load_train_val(config, image_size=8)
    assert (sizes.train, sizes.val, sizes.test) == (len(data.train), len(data.val), data.num_test)


def test_a_domain_on_disk_is_counted(tmp_path: Path) -> None:
    make_tree(tmp_path, {"clipart/a": 6, "clipart/b": 4})
    sizes = part_sizes(DataConfig(name="domainnet", path=str(tmp_path), domain="clipart"))
    assert (sizes.train, sizes.val, sizes.test) == (6, 2, 2)


def test_a_folder_in_s3_is_counted(s3_environment: None) -> None:
    boto3.resource("s3").Bucket("plan").create()
    storage = open_storage("s3://plan/set")
    for name in ("train/a/1.png", "train/b/2.png", "test/a/3.png", "train/"):
        storage.write(name, b"x")
    sizes = part_sizes(DataConfig(name="folder", path="s3://plan/set", val_share=0.5))
    assert (sizes.train, sizes.val, sizes.test) == (1, 1, 1)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no images to count in .*nowhere"):
        part_sizes(DataConfig(name="folder", path=str(tmp_path / "nowhere")))


def test_the_table_sums_up() -> None:
    plan = plan_sweep(grid_config())
    text = terminal_plan([plan, plan])
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert rows[0][:5] == ["sweep", "18", "50", "800", "14,400"]
    assert rows[2][:5] == ["total", "36", "", "", "28,800"]
    assert "nothing was started" in text
    assert "sustains 40 TFLOP/s in float32" in text
    assert max(map(len, text.splitlines())) <= 100
    assert "total" not in terminal_plan([plan])
