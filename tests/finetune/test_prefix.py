import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_disk import SmallDisk
from torch import nn

from unfreeze.config import FinetuneConfig
from unfreeze.data.pixels.batches import TrainBatches
from unfreeze.data.pixels.part import Part
from unfreeze.data.sets.catalog import Dataset
from unfreeze.errors import ConfigError
from unfreeze.finetune.loop import finetune
from unfreeze.finetune.network import make_autocast
from unfreeze.finetune.prefix import Prefix, PrefixCache
from unfreeze.finetune.warm import WarmModel
from unfreeze.records import TrialReport, TrialSpec

MakeWarm = Callable[..., WarmModel]
MakeSpec = Callable[..., TrialSpec]
MakeConfig = Callable[..., FinetuneConfig]
CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path: Path) -> PrefixCache:
    return PrefixCache(tmp_path / "prefix", 2**30, {})


def run(warm: WarmModel, data: Dataset, spec: TrialSpec, config: FinetuneConfig, **kwargs: Any) -> list[TrialReport]:
    return [p.reports[-1] for p in finetune(warm, data, spec, config, **{"augment": "none", **kwargs})]


def open_prefix(
    cache: PrefixCache, warm: WarmModel, data: Dataset, start: int, *, rank: int = 0, **settings: Any
) -> Prefix | None:
    plain = {"batch_size": 8, "seed": 3, "augment": "none", "device": CPU, "rank": rank, "world_size": 2}
    batches = TrainBatches(data.train, warm.base.spec, **{**plain, **settings})
    autocast = make_autocast("float32", CPU)
    return cache.open(warm.module, data, batches, start=start, facts=warm.base.facts, autocast=autocast)


def count_calls(layer: nn.Module) -> list[int]:
    calls: list[int] = []
    layer.register_forward_hook(lambda _, arguments, __: calls.append(len(arguments[0])))
    return calls


def test_views_that_never_come_back_are_refused(
    cache: PrefixCache, data: Dataset, make_warm: MakeWarm, make_spec: MakeSpec, make_config: MakeConfig
) -> None:
    with pytest.raises(ConfigError, match="num_views above 0, but got 'crop_flip' and num_views=0"):
        run(make_warm(), data, make_spec("mha@1"), make_config(), augment="crop_flip", num_views=0, prefixes=cache)


@pytest.mark.parametrize("selection", ["mha@1", "fc2@1+ln1@1", "none"])
@pytest.mark.parametrize("views", [{}, {"augment": "crop_flip", "num_views": 2}])
def test_a_trial_on_cached_activations_reports_what_it_reports_without(
    selection: str,
    views: dict[str, Any],
    cache: PrefixCache,
    data: Dataset,
    make_warm: MakeWarm,
    make_spec: MakeSpec,
    make_config: MakeConfig,
) -> None:
    spec, config = make_spec(selection), make_config()
    plain = run(make_warm(), data, spec, config, **views)
    cached = run(make_warm(), data, spec, config, prefixes=cache, **views)
    assert len(plain) == len(cached) == 4
    for ours, theirs in zip(cached, plain, strict=True):
        assert ours.val_accuracy == theirs.val_accuracy
        assert (ours.train_loss, ours.val_loss) == pytest.approx((theirs.train_loss, theirs.val_loss), rel=1e-5)


def test_later_trials_that_start_there_never_run_the_prefix(
    cache: PrefixCache, data: Dataset, make_warm: MakeWarm, make_spec: MakeSpec, make_config: MakeConfig
) -> None:
    warm = make_warm()
    run(warm, data, make_spec("mha@1"), make_config(), prefixes=cache)
    calls = count_calls(warm.module.blocks[0].norm1)  # type: ignore[index, union-attr, arg-type]
    again = run(warm, data, make_spec("mha@1"), make_config(), prefixes=cache)
    other = run(warm, data, make_spec("fc1@1", seed=8), make_config(), prefixes=cache)
    assert len(again) == len(other) == 4
    assert sum(calls) == 2  # the one image that tells the tokens' shape, for each trial


def test_who_fills_it_does_not_change_a_bit(tmp_path: Path, data: Dataset, make_warm: MakeWarm) -> None:
    first = open_prefix(PrefixCache(tmp_path / "a", 2**30, {}), make_warm(), data, 1)
    second = open_prefix(PrefixCache(tmp_path / "b", 2**30, {}), make_warm(), data, 1, rank=1)
    assert first is not None
    assert second is not None
    assert torch.equal(first.train, second.train)
    assert torch.equal(first.val, second.val)


def test_a_filling_that_was_cut_goes_on_where_it_stopped(
    cache: PrefixCache, data: Dataset, make_warm: MakeWarm
) -> None:
    warm = make_warm()
    whole = open_prefix(cache, warm, data, 1)
    assert whole is not None
    expected = whole.train.clone()
    (folder,) = [p.parent for p in cache.folder.glob("*/tokens") if p.stat().st_size == expected.numel() * 4]
    flags = torch.from_file(str(folder / "done"), shared=True, size=2, dtype=torch.uint8)
    assert flags.tolist() == [1, 1]
    flags[1] = 0
    whole.train[32:] = 0
    calls = count_calls(warm.module.blocks[0].norm1)  # type: ignore[index, union-attr, arg-type]
    again = open_prefix(cache, warm, data, 1)
    assert again is not None
    assert torch.equal(again.train, expected)
    assert calls == [1, 13]  # 45 images: the second chunk alone


def test_for_the_head_alone_one_token_an_image_is_kept(cache: PrefixCache, data: Dataset, make_warm: MakeWarm) -> None:
    prefix = open_prefix(cache, make_warm(), data, 2)
    assert prefix is not None
    assert prefix.train.shape == (45, 1, 16)


@pytest.mark.parametrize(
    ("start", "kwargs"),
    [(0, {}), (1, {"proj_drop_rate": 0.1}), (1, {"pos_drop_rate": 0.1}), (2, {"attn_drop_rate": 0.2})],
)
def test_where_nothing_comes_back_nothing_is_cached(
    start: int, kwargs: dict[str, float], cache: PrefixCache, data: Dataset, make_warm: MakeWarm
) -> None:
    assert open_prefix(cache, make_warm(**kwargs), data, start) is None
    assert not cache.folder.exists()


def test_other_weights_images_or_blocks_are_another_prefix(
    cache: PrefixCache, data: Dataset, make_warm: MakeWarm, make_part: Callable[[int, int], Part]
) -> None:
    def folders() -> int:
        return len(list(cache.folder.glob("*/tokens")))

    open_prefix(cache, make_warm(), data, 1)
    assert folders() == 2
    open_prefix(cache, make_warm(), data, 1, seed=99, batch_size=4)  # what a trial draws is no part of it
    assert folders() == 2
    open_prefix(cache, make_warm(depth=3), data, 2)
    assert folders() == 4
    other = Dataset(data.classes, make_part(45, 7), data.val, num_test=0, digest="", bad_files=())
    open_prefix(cache, make_warm(), other, 1)
    assert folders() == 5


def test_above_its_size_it_says_so_and_the_trial_goes_without(
    tmp_path: Path,
    data: Dataset,
    make_warm: MakeWarm,
    make_spec: MakeSpec,
    make_config: MakeConfig,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = PrefixCache(tmp_path / "prefix", 1000, {})
    reports = run(make_warm(), data, make_spec("mha@1"), make_config(), prefixes=cache)
    assert len(reports) == 4
    assert "finetune.prefix_cache_gib" in caplog.text
    assert not cache.folder.exists()


def test_the_longest_unused_makes_room(tmp_path: Path, data: Dataset, make_warm: MakeWarm) -> None:
    images, tokens, width = len(data.train) + len(data.val), 5, 16
    one = images * tokens * width * 4
    cache = PrefixCache(tmp_path / "prefix", 2 * one, {})
    kept = open_prefix(cache, make_warm(depth=4), data, 1)
    assert kept is not None
    before = kept.train.clone()
    open_prefix(cache, make_warm(depth=4), data, 2)
    assert sum(p.stat().st_size for p in cache.folder.glob("*/tokens")) == 2 * one
    open_prefix(cache, make_warm(depth=4), data, 3)
    assert sum(p.stat().st_size for p in cache.folder.glob("*/tokens")) <= 2 * one
    assert np.array_equal(kept.train.numpy(), before.numpy())  # whoever still reads a dropped one keeps it


def test_precision_and_heads_make_another_prefix(cache: PrefixCache, data: Dataset, make_warm: MakeWarm) -> None:
    """Neither shows in the weights, in the tokens' type or in the layers' repr."""

    def tokens(warm: WarmModel, precision: str) -> torch.Tensor:
        batches = TrainBatches(data.train, warm.base.spec, batch_size=8, seed=0, augment="none", device=CPU)
        autocast = make_autocast(precision, CPU)
        prefix = cache.open(warm.module, data, batches, start=1, facts=warm.base.facts, autocast=autocast)
        assert prefix is not None
        return prefix.train.clone()

    plain = tokens(make_warm(), "float32")
    assert not torch.equal(plain, tokens(make_warm(), "bfloat16"))
    assert not torch.equal(plain, tokens(make_warm(num_heads=4), "float32"))
    assert torch.equal(plain, tokens(make_warm(), "float32"))


def test_where_it_cannot_be_written_the_trial_goes_without(
    tmp_path: Path,
    data: Dataset,
    make_warm: MakeWarm,
    make_spec: MakeSpec,
    make_config: MakeConfig,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = PrefixCache(tmp_path / "file" / "prefix", 2**30, {})
    assert len(run(make_warm(), data, make_spec("mha@1"), make_config(), prefixes=cache)) == 4
    assert "no activations are cached" in caplog.text


def test_a_disk_without_room_costs_the_cache_and_not_the_trial(
    data: Dataset,
    make_warm: MakeWarm,
    make_spec: MakeSpec,
    make_config: MakeConfig,
    small_disk: SmallDisk,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nor the process, where there is room for the tokens and none for what says which of them are there."""
    spec, config = make_spec("mha@1"), make_config()
    plain = run(make_warm(), data, spec, config)
    given_up = []
    for pages in (0, 4, 5, 6, 8, 20):
        caplog.clear()
        small_disk.fill(but=4096 * pages)
        cached = run(make_warm(), data, spec, config, prefixes=PrefixCache(small_disk.path / "prefix", 2**30, {}))
        assert [report.val_accuracy for report in cached] == [report.val_accuracy for report in plain]
        given_up.append("they are computed anew" in caplog.text)
        small_disk.make_room()
        shutil.rmtree(small_disk.path / "prefix")
    assert given_up == sorted(given_up, reverse=True)
    assert given_up[0]
    assert not given_up[-1]
