"""How a sweep says what started it: a command that can be run again."""

import sys
from pathlib import Path

import pytest

from unfreeze.sweep.environment import describe_environment


@pytest.mark.parametrize(
    ("place", "name", "command"),
    [
        ("job/sweeps/vit_components.py", "sweeps/vit_components.py", "python sweeps/vit_components.py"),
        ("elsewhere/sweeps/vit_components.py", "vit_components.py", "unfreeze sweep"),
        ("elsewhere/sweeps/paper.py", "paper.py", "unfreeze paper"),
        ("elsewhere/mine.py", "mine.py", "mine.py"),
    ],
)
def test_the_command(place: str, name: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "job").mkdir()
    monkeypatch.chdir(tmp_path / "job")
    uri = "tracking.uri=https://me:secret@host"
    monkeypatch.setattr(sys, "argv", [str(tmp_path / place), "sweep.name=a b", uri])
    source = describe_environment()["source"]
    assert source["name"] == name
    assert source["command"].startswith(f"{command} 'sweep.name=a b' ")
    assert "secret" not in source["command"]
