"""Tables found again: by what the driver can see, or by what an actor has loaded."""

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from flipped import EVERY_OPTION, FLIPPED

from unfreeze.config import Config
from unfreeze.data.pixels.keys import IRRELEVANT
from unfreeze.errors import StorageError
from unfreeze.load import load_config
from unfreeze.plasticity.cache import PlasticityCache
from unfreeze.records import (
    COMPONENTS,
    MODES,
    DataFacts,
    ModelFacts,
    PlasticityBound,
    PlasticityRanking,
    PlasticityRow,
    PlasticityTable,
)
from unfreeze.storage.folder import FolderStorage
from unfreeze.sweep import prepass, resources
from unfreeze.sweep.prepass import measure_once

MODEL = ModelFacts(
    name="unfreeze_tiny",
    digest="m" * 64,
    num_blocks=2,
    parameters={"0.mha": 3, "embed": 7},
    image_size=32,
    create_kwargs={"num_classes": 2},
)
DATA = DataFacts(
    name="folder",
    digest="d" * 64,
    classes=("a", "b"),
    num_train=7,
    num_val=2,
    num_test=2,
    num_source=5,
    pairs_digest="p" * 33,
    bad_files=("train/a/broken.png",),
)
TABLE = PlasticityTable(
    rows=tuple(
        PlasticityRow(
            mode=mode,
            block=block,
            component=component,
            mean=math.pi * (1 + index),
            sd=1 / 3,
            num_pairs=5,
            low=-math.inf,
            high=math.inf,
            quantiles=(0.1, 0.2, 0.1 + 0.2, 1e-300, 1e300),
            maximum=None if block is None else 5e-324,
        )
        for mode in MODES
        for block in (0, 1, None)
        for index, component in enumerate(COMPONENTS)
    ),
    skipped_pairs=1,
    seconds=1.25,
    model_digest=MODEL.digest,
    data_digest=DATA.pairs_digest,
    rankings=(PlasticityRanking(mode="local", block=None, order=COMPONENTS, ties=(True, False, True, False)),),
    stopped={"local": "the images are used up"},
    bounds=(PlasticityBound(mode="local", block=1, component="mha", as_published=None, valid=2 / 3),),
    scores={"fisher": {"0.mha": 1e-17}},
    settings={"modes": ["local"], "layer_norm_eps": None, "confidence": 0.95},
)


@pytest.fixture
def trees(tmp_path: Path) -> dict[str, str]:
    for name in ("birds/train/a/1.png", "birds/train/b/1.png", "imagenet/1.png", "vit.safetensors"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return {name: str(tmp_path / name) for name in ("birds", "imagenet", "vit.safetensors")}


@pytest.fixture
def make(trees: dict[str, str], tmp_path: Path) -> Callable[..., Config]:
    """Options by dotted name → the configuration of images and weights in files."""

    def configure(**options: Any) -> Config:
        raw: dict[str, Any] = {
            "storage": str(tmp_path / "runs"),
            "data": {"name": "folder", "path": trees["birds"], "source_path": trees["imagenet"]},
            "model": {"weights": trees["vit.safetensors"]},
        }
        for name, value in options.items():
            section, _, key = name.partition("__")
            if key:
                raw.setdefault(section, {})[key] = value
            else:
                raw[section] = value
        return load_config(raw)

    return configure


Make = Callable[..., Config]


@pytest.fixture
def kept(make: Make) -> Path:
    """Where the storage keeps the one table there is."""
    config = make()
    PlasticityCache(config).keep(MODEL, DATA, TABLE)
    return Path(config.storage)


def test_what_was_kept_comes_back_exactly(make: Make, kept: Path) -> None:
    assert PlasticityCache(make()).find_unseen() == (MODEL, DATA, TABLE)
    assert PlasticityCache(make()).find(MODEL, DATA) == TABLE
    found = PlasticityCache(make()).find_unseen()
    assert found is not None
    assert {type(row.quantiles) for row in found[2].rows} == {tuple}
    assert hash(found[1]) == hash(DATA)


def test_nothing_is_found_where_nothing_was_kept(make: Make) -> None:
    cache = PlasticityCache(make())
    assert cache.find_unseen() is None
    assert cache.find(MODEL, DATA) is None
    assert not Path(make().storage).exists()


def test_entries_are_no_sweep_s(kept: Path) -> None:
    assert [path.name for path in kept.iterdir()] == ["_pre-pass"]
    with pytest.raises(ValueError, match=r"sweep\.name"):
        load_config({"sweep": {"name": "_pre-pass"}})


def test_a_second_call_starts_nothing(make: Make, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("Ray is not needed")

    monkeypatch.setattr(resources, "ray_cluster", refuse)
    monkeypatch.setattr(prepass, "check_inputs", lambda *_, **__: None)  # nothing in these files is what it seems
    assert measure_once(make()) == TABLE
    with pytest.raises(AssertionError, match="Ray is not needed"):
        measure_once(make(plasticity__seed=1))


# --- what must not be found -------------------------------------------------------------------------------------------


def rewrite(path: Path) -> None:
    path.write_text("another length")


def touch(path: Path) -> None:
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


@pytest.mark.parametrize("change", [rewrite, touch])
@pytest.mark.parametrize("name", ["birds/train/a/1.png", "imagenet/1.png", "vit.safetensors"])
def test_changed_files_are_looked_at_again(
    name: str, change: Callable[[Path], None], make: Make, kept: Path, tmp_path: Path
) -> None:
    change(tmp_path / name)
    assert PlasticityCache(make()).find_unseen() is None
    assert PlasticityCache(make()).find(MODEL, DATA) == TABLE  # whoever loads them finds out whether they are the same


# What the digests of weights and images stand for, or who computes; a new option is in none of the two.
BY_DIGEST = IRRELEVANT["plasticity"]
BY_INPUTS = IRRELEVANT["inputs"]


def flip(config: Config, option: str) -> PlasticityCache:
    """The cache of a configuration in which that one option has another value."""
    section, _, key = option.partition(".")
    own = getattr(config, section)
    plain, other = getattr(type(own)(), key), FLIPPED[option]
    setattr(own, key, plain if getattr(own, key) == other else other)
    return PlasticityCache(config)


@pytest.mark.parametrize("option", EVERY_OPTION)
def test_an_option_leads_to_another_table_or_is_listed(option: str, make: Make, kept: Path) -> None:
    cache = flip(make(), option)
    assert (cache.find_unseen() is not None) == (option in BY_INPUTS)
    assert (cache.find(MODEL, DATA) is not None) == (option in BY_DIGEST)


def test_a_rival_score_for_the_prior_is_another_table(make: Make, kept: Path) -> None:
    assert PlasticityCache(make(search__prior={"score": "fisher"})).find_unseen() is None


@pytest.mark.parametrize(
    "other",
    [
        {"digest": "n" * 64},
        {"image_size": 64},
        {"create_kwargs": {"num_classes": 2, "num_heads": 4}},  # the same tensors, cut into other heads
        {"name": "vit_tiny_patch16_224"},  # the same tensors as deit_tiny's, another normalisation of the images
    ],
)
def test_another_model_has_another_table(other: dict[str, Any], make: Make, kept: Path) -> None:
    assert PlasticityCache(make()).find(replace(MODEL, **other), DATA) is None


def test_other_pairs_have_another_table(make: Make, kept: Path) -> None:
    assert PlasticityCache(make()).find(MODEL, replace(DATA, pairs_digest="q" * 33)) is None


@pytest.mark.parametrize("library", ["timm", "torch"])
def test_another_version_measures_again(library: str, make: Make, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unfreeze.plasticity import cache

    own = cache.importlib.metadata.version
    monkeypatch.setattr(cache.importlib.metadata, "version", lambda name: "0" if name == library else own(name))
    assert PlasticityCache(make()).find_unseen() is None
    assert PlasticityCache(make()).find(MODEL, DATA) is None


# --- what must be found -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("plasticity__num_actors", 3),
        ("data__cache_dir", "/elsewhere"),
        ("cluster__num_slots", 3),
        ("cluster__gpus_per_worker", 0.5),
        ("sweep__name", "another"),
        ("sweep__seed", 5),
        ("finetune__epochs", 1.0),
        ("search__num_trials", 3),
        ("search__prior", {"score": "in_situ"}),
        ("tracking__uri", None),
    ],
)
def test_what_does_not_decide_is_not_asked(option: str, value: Any, make: Make, kept: Path) -> None:
    assert PlasticityCache(make(**{option: value})).find_unseen() == (MODEL, DATA, TABLE)


def test_data_that_moved_is_found_by_its_content(make: Make, kept: Path, trees: dict[str, str]) -> None:
    shutil.move(trees["birds"], trees["birds"] + "-moved")
    cache = PlasticityCache(make(data__path=trees["birds"] + "-moved"))
    assert cache.find_unseen() is None
    assert cache.find(MODEL, DATA) == TABLE


@pytest.mark.parametrize("option", ["data__path", "data__source_path", "model__weights"])
def test_files_on_the_nodes_alone_are_found_by_content(option: str, make: Make) -> None:
    config = make(**{option: "/on/the/nodes/alone"})
    cache = PlasticityCache(config)
    cache.keep(MODEL, DATA, TABLE)
    assert [path.name for path in (Path(config.storage) / "_pre-pass").iterdir()] == ["digests"]
    assert cache.find_unseen() is None
    assert cache.find(MODEL, DATA) == TABLE


# --- damage -----------------------------------------------------------------------------------------------------------

WHOLE = {"model": None, "data": None, "table": None}
DAMAGE = {
    "cut": b'{"model": {"na',
    "empty": b"",
    "no text": b"\xff\xfe\x00\x01",
    "no object": b"[1, 2]",
    "a number": b"7",
    "nothing in it": b"{}",
    "of another shape": json.dumps({"model": {"nmae": 1}, "data": {}, "table": {"rows": 3}}).encode(),
    "null inside": json.dumps(WHOLE).encode(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_measured_again(
    damage: str, make: Make, kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in kept.rglob("*.json"):
        path.write_bytes(DAMAGE[damage])
    cache = PlasticityCache(make())
    with caplog.at_level(logging.WARNING):
        assert cache.find_unseen() is None
        assert cache.find(MODEL, DATA) is None
    assert sum("cannot be read and is measured again" in message for message in caplog.messages) == 2
    assert all(str(kept) in message for message in caplog.messages)
    cache.keep(MODEL, DATA, TABLE)
    assert cache.find_unseen() == (MODEL, DATA, TABLE)


def test_an_unreadable_entry_is_measured_again(
    make: Make, kept: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> bytes:
        raise StorageError("permission denied")

    monkeypatch.setattr(FolderStorage, "read", refuse)
    assert PlasticityCache(make()).find_unseen() is None
    assert "permission denied" in caplog.text


# --- S3 ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(s3_environment: None) -> Iterator[Any]:
    bucket = boto3.resource("s3").Bucket("pre-pass")
    bucket.create()
    yield bucket
    bucket.objects.all().delete()
    bucket.delete()


@pytest.mark.parametrize("storage", ["s3://pre-pass", "s3://pre-pass/sweeps"])
def test_the_storage_may_be_s3(storage: str, make: Make, bucket: Any, caplog: pytest.LogCaptureFixture) -> None:
    config = make(storage=storage)
    assert PlasticityCache(config).find_unseen() is None
    PlasticityCache(config).keep(MODEL, DATA, TABLE)
    assert PlasticityCache(make(storage=storage)).find_unseen() == (MODEL, DATA, TABLE)
    assert PlasticityCache(make(storage=storage)).find(MODEL, DATA) == TABLE
    for item in bucket.objects.all():
        item.put(Body=b"{")
    assert PlasticityCache(config).find_unseen() is None
    assert "measured again" in caplog.text


def test_images_and_weights_may_be_in_s3(make: Make, bucket: Any) -> None:
    for key in ("birds/train/a/1.png", "imagenet/1.png", "vit.safetensors"):
        bucket.put_object(Key=key, Body=key.encode())
    places = {
        "data__path": "s3://pre-pass/birds",
        "data__source_path": "s3://pre-pass/imagenet",
        "model__weights": "s3://pre-pass/vit.safetensors",
    }
    PlasticityCache(make(**places)).keep(MODEL, DATA, TABLE)
    assert PlasticityCache(make(**places)).find_unseen() == (MODEL, DATA, TABLE)
    for key in ("birds/train/a/1.png", "imagenet/1.png", "vit.safetensors"):
        bucket.put_object(Key=key, Body=b"changed")
        assert PlasticityCache(make(**places)).find_unseen() is None
        bucket.put_object(Key=key, Body=key.encode())
        assert PlasticityCache(make(**places)).find_unseen() is not None
