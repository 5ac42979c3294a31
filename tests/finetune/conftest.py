"""A tiny model with random weights, and images whose class can be learnt: enough for the protocol's numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unfreeze.config import FinetuneConfig, ModelConfig
from unfreeze.data.catalog import Dataset, Part
from unfreeze.data.decode import make_array
from unfreeze.finetune.warm import WarmModel
from unfreeze.models.build import build_model
from unfreeze.records import TrialSpec

NUM_CLASSES = 4


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Sums in a fixed order, so that equal numbers are equal bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def make_part() -> Callable[[int, int], Part]:
    """(number of images, seed) → a part: noise over one pattern per class."""
    patterns = np.random.default_rng(99).integers(0, 256, (NUM_CLASSES, 32, 32, 3))

    def make(count: int, seed: int) -> Part:
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, NUM_CLASSES, count)
        noise = rng.integers(0, 256, (count, 32, 32, 3))
        images = (0.2 * patterns[labels] + 0.8 * noise).astype(np.uint8)
        return Part(make_array(images, labels), np.arange(count))

    return make


@pytest.fixture(scope="session")
def data(make_part: Callable[[int, int], Part]) -> Dataset:
    """45 training images (no multiple of the batch size) and 19 for validation."""
    return Dataset(tuple("abcd"), make_part(45, 1), make_part(19, 2), num_test=0, digest="data", bad_files=())


@pytest.fixture(scope="session")
def make_warm() -> Callable[..., WarmModel]:
    """A warm model of its own for each call, always with the same base weights."""

    def make(**kwargs: Any) -> WarmModel:
        small = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 16}
        config = ModelConfig(name="unfreeze_tiny", weights="random", kwargs={**small, **kwargs})
        base = build_model(config, num_classes=NUM_CLASSES, cache_dir=Path("unused"))
        return WarmModel(base, torch.device("cpu"))

    return make


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., TrialSpec]:
    def make(selection: str = "mha", **settings: Any) -> TrialSpec:
        plain = {"index": 0, "learning_rate": 0.05, "seed": 11, "origin": "search"}
        return TrialSpec(selection=selection, **{**plain, **settings})

    return make


@pytest.fixture(scope="session")
def make_config() -> Callable[..., FinetuneConfig]:
    """12 optimizer steps, 4 reports; the batches of 8 cross the epochs of 45 images."""

    def make(**settings: Any) -> FinetuneConfig:
        plain = {"epochs": 12 * 8 / 45, "batch_size": 8, "num_reports": 4, "eval_batch_size": 6}
        return FinetuneConfig(**{**plain, **settings})

    return make
