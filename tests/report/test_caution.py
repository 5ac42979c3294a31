"""What a plan is too small to tell: the lines, and the cures they name."""

import math
from dataclasses import replace
from typing import Any

import pytest

from unfreeze.config import Config, DataConfig, FinetuneConfig
from unfreeze.records import Evidence
from unfreeze.report.caution import cautions
from unfreeze.report.page import html_report, terminal_report


def lines(*, num_train: int, num_val: int, max_val_images: int | None = None, **finetune: Any) -> list[str]:
    config = Config(data=DataConfig(max_val_images=max_val_images), finetune=FinetuneConfig(**finetune))
    return list(cautions(config, num_train=num_train, num_val=num_val))


def test_what_is_large_enough_has_none() -> None:
    assert lines(num_train=320, num_val=400, epochs=10.0, batch_size=64) == []
    assert len(lines(num_train=319, num_val=399, epochs=9.0, batch_size=64)) == 2


@pytest.mark.parametrize(("num_train", "num_val"), [(0, 3), (3, 0), (0, 0)])
def test_shares_that_leave_nothing_are_said(num_train: int, num_val: int) -> None:
    (line,) = lines(num_train=num_train, num_val=num_val)
    assert line.startswith(
        f"{num_train} training images and {num_val} validation images are left: lower data.test_share"
    )


def test_two_steps_and_eighteen_images_are_said_with_their_cures() -> None:
    steps, images = lines(num_train=78, num_val=18, epochs=2.0, batch_size=64)
    assert steps.startswith("a trial is 2 optimizer steps on 78 training images")
    assert "finetune.epochs=42" in steps  # 42 × 78 / 64 = 51
    assert lines(num_train=78, num_val=10_000, epochs=42.0, batch_size=64) == []
    error = 100 * math.sqrt(0.8 * 0.2 / 18)
    assert f"with 18 validation images an accuracy of 80% has a standard error of {error:.1f} points" in images
    assert "400 would make it 2: raise data.val_share" in images


def test_the_cure_is_the_option_that_limits() -> None:
    steps, images = lines(num_train=1000, num_val=30, steps=1, max_val_images=30)
    assert "a trial is 1 optimizer step on" in steps
    assert "finetune.steps=50 makes it 50" in steps
    assert "raise data.max_val_images or" in images


def test_a_batch_of_more_images_than_there_are_is_said() -> None:
    assert lines(num_train=64, num_val=400, steps=50, batch_size=64) == []
    (line,) = lines(num_train=63, num_val=400, steps=50, batch_size=64)
    assert line.startswith("a batch of finetune.batch_size=64 is more than the 63 training images")


@pytest.mark.parametrize("write", [terminal_report, html_report])
def test_the_report_repeats_them(write: Any, evidence: Evidence) -> None:
    text = " ".join(write(replace(evidence, cautions=("a trial is 2 optimizer steps",))).split())
    assert "a trial is 2 optimizer steps" in text
    assert "caution" not in write(evidence)
