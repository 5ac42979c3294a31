"""What is measured, recalled and kept, with Ray's calls made in this process; tests/integration has Ray's own."""

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from PIL import Image

from unfreeze.config import Config
from unfreeze.errors import ClusterError, DataError, SweepMismatchError
from unfreeze.load import load_config
from unfreeze.models.tiny import tiny_weights_path
from unfreeze.plasticity.actor import PrePass
from unfreeze.records import plasticity_table_from_dict
from unfreeze.storage.ledger import Ledger
from unfreeze.sweep import resources
from unfreeze.sweep.prepass import measure_once, pre_pass

Make = Callable[..., Config]


def plant(root: Path, *, classes: tuple[str, ...], count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index:02d}.png")


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Options by section → the configuration of noise in two classes, and of the tiny model's weights in a file."""
    plant(tmp_path / "birds", classes=("a", "b"), count=14, seed=1)
    plant(tmp_path / "imagenet", classes=("",), count=12, seed=2)
    shutil.copy(tiny_weights_path(), tmp_path / "vit.safetensors")

    def configure(**sections: dict[str, Any]) -> Config:
        raw: dict[str, Any] = {
            "sweep": {},
            "model": {"weights": str(tmp_path / "vit.safetensors")},
            "data": {
                "name": "folder",
                "path": str(tmp_path / "birds"),
                "source_path": str(tmp_path / "imagenet"),
                "cache_dir": str(tmp_path / "cache"),
            },
            "plasticity": {"batch_size": 4, "min_observations": 4},
        }
        for name, options in sections.items():
            raw[name] = {**raw.get(name, {}), **options}
        return load_config({**raw, "storage": str(tmp_path / "runs")})

    return configure


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Ray, played in this process: each call is answered when it is asked for. Counts the calls, and who was hired."""
    counts: Counter[str] = Counter()

    def hire(**options: Any) -> Callable[[type], Any]:
        counts.update({f"{name}={value}": 1 for name, value in options.items()})

        def employ(kind: type) -> Any:
            def start(config: Config) -> Any:
                counts["hired"] += 1
                actor = kind(config)

                def method(name: str) -> Any:
                    def remote(*arguments: Any) -> tuple[Any, ...]:
                        counts[name] += 1
                        return (getattr(actor, name), arguments)

                    return SimpleNamespace(remote=remote)

                ready = SimpleNamespace(remote=lambda: (lambda: None, ()))
                return SimpleNamespace(
                    __ray_ready__=ready, **{name: method(name) for name in ("facts", "rates", "finish")}
                )

            return SimpleNamespace(remote=start)

        return employ

    def kill(_: Any) -> None:
        counts["killed"] += 1

    context = SimpleNamespace(get_assigned_resources=lambda: {"CPU": 1.0})
    monkeypatch.setattr(ray, "remote", hire)
    monkeypatch.setattr(ray, "get", lambda call: call[0](*call[1]))
    monkeypatch.setattr(ray, "wait", lambda calls, num_returns: (calls[:1], calls[1:]))
    monkeypatch.setattr(ray, "kill", kill)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    threads = torch.get_num_threads()
    yield counts
    torch.set_num_threads(threads)


def ledger_of(config: Config) -> Ledger:
    return Ledger(config.storage, config.sweep.name)


def begin(config: Config) -> Any:
    """The pre-pass of a sweep that then begins."""
    result = pre_pass(config, ledger_of(config))
    ledger_of(config).claim(config)
    return result


def test_two_sweeps_in_one_storage_measure_once(make: Make, calls: Counter[str]) -> None:
    first = begin(make(sweep={"name": "one"}))
    assert (calls["hired"], calls["killed"], calls["finish"]) == (1, 1, 1)
    assert calls["rates"] == 3
    calls.clear()
    second = begin(make(sweep={"name": "two", "seed": 3}, search={"num_trials": 5}))
    assert not calls
    assert second == first
    one, two = (ledger_of(make(sweep={"name": name})) for name in ("one", "two"))
    assert one.read_json("plasticity.json") == two.read_json("plasticity.json")
    assert one.read_json("facts.json") == two.read_json("facts.json")
    assert plasticity_table_from_dict(one.read_json("plasticity.json")) == first[2]


def test_a_pre_pass_alone_serves_a_sweep(make: Make, calls: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "ray_cluster", lambda _: contextlib.nullcontext())
    config = make(cluster={"gpus_per_worker": 0})  # auto asks the cluster
    table = measure_once(config)
    calls.clear()
    assert begin(config)[2] == table
    assert measure_once(config) == table
    assert not calls


def test_actors_are_as_many_and_as_large_as_asked_for(make: Make, calls: Counter[str]) -> None:
    options = {"cpus_per_worker": 0.5, "gpus_per_worker": 0.25}
    shared = begin(make(plasticity={"num_actors": 2}, cluster=options))
    assert (calls["hired"], calls["killed"]) == (2, 2)
    assert (calls["num_cpus=0.5"], calls["num_gpus=0.25"], calls["max_concurrency=2"]) == (2, 2, 2)
    calls.clear()
    assert begin(make(sweep={"name": "alone"})) == shared
    assert not calls


def test_moved_images_are_loaded_but_not_measured(make: Make, calls: Counter[str], tmp_path: Path) -> None:
    model, _, table = begin(make())
    shutil.move(tmp_path / "birds", tmp_path / "moved")
    shutil.move(tmp_path / "vit.safetensors", tmp_path / "moved.safetensors")
    calls.clear()
    elsewhere = {
        "data": {"path": str(tmp_path / "moved")},
        "model": {"weights": str(tmp_path / "moved.safetensors")},
    }
    found = begin(make(sweep={"name": "moved"}, **elsewhere))
    assert (found[0], found[2]) == (model, table)
    assert (calls["facts"], calls["rates"], calls["finish"], calls["killed"]) == (1, 0, 0, 1)
    calls.clear()
    begin(make(sweep={"name": "again"}, **elsewhere))
    assert not calls


def test_the_same_weights_in_other_heads_are_measured(make: Make, calls: Counter[str]) -> None:
    _, _, two = begin(make(model={"kwargs": {"num_heads": 2}}))
    _, _, four = begin(make(sweep={"name": "four"}, model={"kwargs": {"num_heads": 4}}))
    assert four.component_means("reference")["mha"] != two.component_means("reference")["mha"]


def test_other_pixels_of_the_same_files_are_measured(make: Make, calls: Counter[str]) -> None:
    """Normalisation, epsilon and interpolation change what the model is shown, not the files."""
    begin(make())
    tables = [
        begin(make(sweep={"name": f"sweep-{index}"}, **options))[2].component_means("reference")
        for index, options in enumerate(
            ({}, {"model": {"normalization": "imagenet"}}, {"model": {"layer_norm_eps": 0.1}})
        )
    ]
    assert len({means["ln2"] for means in tables}) == 3


def test_images_behind_a_link_are_told_apart(make: Make, calls: Counter[str], tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "train").symlink_to(tmp_path / "birds")
    linked = {"data": {"path": str(tmp_path / "linked")}}
    assert begin(make(**linked))[1].classes == ("a", "b")
    (tmp_path / "birds" / "a").rename(tmp_path / "birds" / "emu")
    assert begin(make(sweep={"name": "two"}, **linked))[1].classes == ("b", "emu")
    with pytest.raises(SweepMismatchError, match="the data of sweep 'sweep' changed"):
        pre_pass(make(**linked), ledger_of(make()))


@pytest.fixture
def parted(make: Make, tmp_path: Path) -> Config:
    """With a test part of its own."""
    plant(tmp_path / "parted" / "train", classes=("a", "b"), count=14, seed=1)
    plant(tmp_path / "parted" / "test", classes=("a", "b"), count=5, seed=3)
    return make(data={"path": str(tmp_path / "parted")})


def test_another_test_set_is_refused(parted: Config, calls: Counter[str], tmp_path: Path) -> None:
    begin(parted)
    (tmp_path / "parted/test/a").rename(tmp_path / "aside")  # the labels swapped
    (tmp_path / "parted/test/b").rename(tmp_path / "parted/test/a")
    (tmp_path / "aside").rename(tmp_path / "parted/test/b")
    with pytest.raises(SweepMismatchError, match="the test images of sweep 'sweep' changed"):
        pre_pass(parted, ledger_of(parted))


def test_an_unreadable_test_image_is_named_before_anything_starts(
    parted: Config, calls: Counter[str], tmp_path: Path
) -> None:
    (tmp_path / "parted/test/a/00.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"1 of 10 files below .*test cannot be read as images.*a/00\.png"):
        pre_pass(parted, ledger_of(parted))


# --- a sweep that goes on ---------------------------------------------------------------------------------------------


def test_a_resumed_sweep_keeps_its_own_table(make: Make, calls: Counter[str], tmp_path: Path) -> None:
    """Its trials were proposed with it."""
    config = make()
    _, _, table = begin(config)
    ledger = ledger_of(config)
    stored = ledger.read_json("plasticity.json")
    stored["rows"][0]["mean"] += 1
    ledger.write_json("plasticity.json", stored)
    for storage_left in (True, False):
        if not storage_left:
            shutil.rmtree(tmp_path / "runs" / "_pre-pass")
        resumed = pre_pass(make(cluster={"num_slots": 2}), ledger)[2]
        assert resumed == plasticity_table_from_dict(stored) != table
        assert ledger.read_json("plasticity.json") == stored


def test_a_table_of_another_model_is_refused(make: Make, calls: Counter[str]) -> None:
    """Copied there from another sweep's folder."""
    config = make()
    begin(config)
    ledger = ledger_of(config)
    ledger.write_json("plasticity.json", {**ledger.read_json("plasticity.json"), "model_digest": "of another"})
    with pytest.raises(SweepMismatchError, match=r"plasticity\.json was measured on another model .*delete it"):
        pre_pass(config, ledger)
    ledger.delete("plasticity.json")
    assert pre_pass(config, ledger)[2].model_digest != "of another"


def test_a_sweep_that_was_never_claimed_begins_anew(make: Make, calls: Counter[str]) -> None:
    config = make()
    ledger = ledger_of(config)
    ledger.write_json("facts.json", {"model": {"digest": "of another try"}, "data": {"digest": "of another try"}})
    model, _, _ = pre_pass(config, ledger)
    assert ledger.read_json("facts.json")["model"]["digest"] == model.digest


def test_a_cut_between_facts_and_table_is_mended(make: Make, calls: Counter[str]) -> None:
    config = make()
    _, _, table = begin(config)
    ledger_of(config).delete("plasticity.json")
    assert pre_pass(config, ledger_of(config))[2] == table
    ledger_of(config).delete("facts.json")
    assert pre_pass(config, ledger_of(config))[2] == table
    assert ledger_of(config).read_json("facts.json") is not None


def change_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "vit.safetensors")
    weights["blocks.0.norm1.weight"] = weights["blocks.0.norm1.weight"] + 1
    save_file(weights, folder / "vit.safetensors")


def change_images(folder: Path) -> None:
    Image.new("RGB", (32, 32), (1, 2, 3)).save(folder / "birds" / "a" / "00.png")


@pytest.mark.parametrize(("change", "part"), [(change_weights, "model"), (change_images, "data")])
def test_what_changed_under_a_sweep_is_refused(
    change: Callable[[Path], None], part: str, make: Make, calls: Counter[str], tmp_path: Path
) -> None:
    config = make()
    begin(config)
    before = {key: ledger_of(config).read_bytes(key) for key in ("facts.json", "plasticity.json")}
    change(tmp_path)
    with pytest.raises(SweepMismatchError, match=rf"the {part} of sweep 'sweep' changed since it began.*sweep\.name"):
        pre_pass(config, ledger_of(config))
    assert {key: ledger_of(config).read_bytes(key) for key in before} == before
    begin(make(sweep={"name": "new"}))  # under a name of its own it may


def test_touched_files_of_the_same_content_are_no_change(make: Make, calls: Counter[str], tmp_path: Path) -> None:
    config = make()
    expected = begin(config)
    for path in (*(tmp_path / "birds").rglob("*.png"), tmp_path / "vit.safetensors"):
        path.touch()
    calls.clear()
    assert pre_pass(config, ledger_of(config)) == expected
    assert (calls["facts"], calls["rates"]) == (1, 0)


def test_another_configuration_is_refused_before_an_actor_starts(make: Make, calls: Counter[str]) -> None:
    begin(make())
    calls.clear()
    with pytest.raises(SweepMismatchError, match=r"plasticity\.seed"):
        pre_pass(make(plasticity={"seed": 1}), ledger_of(make()))
    assert not calls


# --- trouble ----------------------------------------------------------------------------------------------------------


def test_an_error_keeps_nothing_and_frees_the_actors(make: Make, calls: Counter[str], tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "birds")
    with pytest.raises(DataError, match="birds"):
        pre_pass(make(plasticity={"num_actors": 3}), ledger_of(make()))
    assert (calls["hired"], calls["killed"]) == (3, 3)
    assert not (tmp_path / "runs").exists()


def test_too_few_images_are_said_before_anything_is_measured(make: Make, calls: Counter[str]) -> None:
    with pytest.raises(DataError, match="plasticity needs two groups of 8 source and 8 target images at least"):
        pre_pass(make(plasticity={"cross": 8, "batch_size": 8}), ledger_of(make()))
    assert calls["rates"] == 0


def test_damaged_entries_are_measured_again(make: Make, calls: Counter[str], tmp_path: Path) -> None:
    expected = begin(make())
    for path in (tmp_path / "runs" / "_pre-pass").rglob("*.json"):
        path.write_text(path.read_text()[:100])
    calls.clear()
    table = begin(make(sweep={"name": "two"}))[2]
    assert calls["rates"] == 3
    assert table.rows == expected[2].rows
    for path in (tmp_path / "runs" / "_pre-pass").rglob("*.json"):
        json.loads(path.read_text())


def test_slots_may_warm_up_once_the_actors_have_their_places(make: Make, calls: Counter[str]) -> None:
    seen: list[Counter[str]] = []
    pre_pass(make(), ledger_of(make()), on_placed=lambda: seen.append(calls.copy()))
    (then,) = seen
    assert (then["hired"], then["facts"], then["rates"]) == (1, 1, 0)
    pre_pass(make(), ledger_of(make()), on_placed=lambda: seen.append(calls.copy()))
    assert len(seen) == 1  # recalled: nobody was placed


def test_the_loss_of_the_first_actor_while_it_loads_is_said_plainly(
    make: Make, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory by loading the model: as much the user's to mend as by measuring."""

    def die(_: PrePass) -> None:
        raise ray.exceptions.RayActorError

    monkeypatch.setattr(PrePass, "facts", die)
    with pytest.raises(ClusterError):
        pre_pass(make(), ledger_of(make()))
    assert calls["killed"] == 1


def test_a_table_from_before_rankings_and_bounds_is_read() -> None:
    row = {"mode": "reference", "block": None, "component": "mha", "mean": 1.0, "sd": 0.1, "num_pairs": 2}
    old = {
        "rows": [{**row, "low": 0.9, "high": 1.1}],
        "skipped_pairs": 0,
        "seconds": 1.0,
        "model_digest": "m",
        "data_digest": "d",
        "settings": {"num_pairs": 2},
    }
    table = plasticity_table_from_dict(old)
    assert table.component_means("reference") == {"mha": 1.0}
    assert table.ranking("reference") is None
