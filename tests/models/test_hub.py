"""Pretrained weights where Hugging Face's hub does not answer: one line at once, unless they are here already."""

import re
from pathlib import Path

import pytest
from huggingface_hub import constants

from unfreeze.errors import ModelError
from unfreeze.models.hub import check_hub

NAME, REPOSITORY = "deit_tiny_patch16_224", "timm/deit_tiny_patch16_224.fb_in1k"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, empty, and nobody at the hub's address."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    return tmp_path


@pytest.mark.parametrize(("name", "repository"), [(NAME, REPOSITORY), ("hf-hub:mine/vit@main", "mine/vit")])
def test_nobody_answers(name: str, repository: str) -> None:
    with pytest.raises(ModelError, match=f"HF_ENDPOINT.*refused.*`hf download {re.escape(repository)}`.*model.weights"):
        check_hub(name)


def test_what_is_here_already_is_not_asked_for(cache: Path) -> None:
    folder = cache / f"models--{REPOSITORY.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("1f")
    (folder / "snapshots/1f").mkdir(parents=True)
    (folder / "snapshots/1f/model.safetensors").write_bytes(b"weights")
    check_hub(NAME)


@pytest.mark.parametrize("name", ["local-dir:/models/mine", "vit_of_nobody", "unfreeze_tiny"])
def test_what_is_not_of_the_hub_is_somebody_else_s(name: str) -> None:
    check_hub(name)


def test_who_wants_no_network_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check_hub(NAME)
