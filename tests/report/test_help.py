import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from configuring import CONF, SWEEPS, run_entry

from unfreeze.errors import ConfigError
from unfreeze.report.help import find_groups, help_on, help_text
from unfreeze.report.options import list_options

GROUPS = find_groups(CONF)


def names_in(text: str) -> list[str]:
    return [line.split(" = ")[0].strip() for line in text.splitlines() if " = " in line[:60] and line[:3] != "   "]


def test_groups_are_the_folders_of_conf() -> None:
    assert sorted(GROUPS) == ["cluster", "data", "experiment", "model", "search"]
    assert GROUPS["search"] == ["blocks", "components", "depth", "grid", "listed"]
    assert "paper_pet" in GROUPS["experiment"]


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_the_whole_help_has_all_of_it(width: int) -> None:
    text = help_text("python sweeps/a.py", "\nWhat it is for.\n", GROUPS, width=width)
    assert text.startswith("usage: python sweeps/a.py [GROUP=FILE ...] [OPTION=VALUE ...]\n")
    assert "\n\nWhat it is for.\n\n" in text
    words = " ".join(text.split())
    assert all(f"{group}= {', '.join(files)}" in words for group, files in GROUPS.items())
    assert sorted(names_in(text)) == sorted(option.name for option in list_options())
    for option in list_options():
        assert f"{option.name} = {option.default} {option.meaning} ({option.allowed})" in words
    assert "\n\nfinetune: How one trial trains and validates.\n  finetune.optimizer = sgd " in text


@pytest.mark.parametrize("width", [80, 100, 200])
def test_lines_fit(width: int) -> None:
    text = help_text("python a.py", "", GROUPS, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert text == "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def test_a_short_range_is_not_parted() -> None:
    lines = help_text("python a.py", "", GROUPS, width=100).splitlines()
    for line in lines:
        assert not line.endswith(("≥", ">", "<", "≤"))
    assert "\N{NO-BREAK SPACE}" not in "".join(lines)


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (["finetune.epochs"], ["finetune.epochs"]),
        (["epochs"], ["finetune.epochs"]),
        (["trial"], ["trial.selection", "trial.learning_rate", "trial.seed"]),
        (["search.prior"], ["search.prior.score"]),
        (["dry_run", "trial.seed"], ["dry_run", "trial.seed"]),
        (["layer_norm_eps"], ["model.layer_norm_eps", "plasticity.layer_norm_eps"]),
        (["experiment"], ["tracking.experiment"]),
    ],
)
def test_names_narrow_it(names: list[str], options: list[str]) -> None:
    text = help_on(names, GROUPS, width=100)
    assert names_in(text) == options
    assert "usage" not in text
    assert ("groups: " in text) == (names == ["experiment"])


def test_a_group_shows_its_files_alone() -> None:
    text = help_on(["model"], GROUPS, width=100)
    assert "  model=       tiny, vit_base\n" in text
    assert "cluster=" not in text
    assert "\n  model.name = unfreeze_tiny " in text


def test_unknown_names_come_in_one_error_with_their_neighbours() -> None:
    with pytest.raises(ConfigError) as caught:
        help_on(["finetun", "epochs", "finetune.epocs", "zzz"], GROUPS, width=100)
    said = str(caught.value).splitlines()
    assert said[0] == "no group, section or option has this name:"
    assert said[1:3] == ["  finetun: did you mean finetune?", "  finetune.epocs: did you mean finetune.epochs?"]
    assert said[3].startswith("  zzz: the sections are sweep, model, data, ")
    assert len(said) == 4


# --- through the scripts ----------------------------------------------------------------------------------------------


def test_the_script_s_help(tmp_path: Path) -> None:
    result = run_entry(tmp_path, "experiment=demo", "finetune.epochs=3", "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "usage: python " in result.stdout
    assert "which components of this model should be unfrozen" in result.stdout
    assert "  finetune.epochs = 10.0 " in result.stdout
    assert "\x1b" not in result.stdout
    assert max(map(len, result.stdout.splitlines()[4:])) <= 100
    assert list(tmp_path.iterdir()) == []


def test_the_script_s_help_on_a_name(tmp_path: Path) -> None:
    known, unknown = run_entry(tmp_path, "--help", "finetune.epochs"), run_entry(tmp_path, "-h", "finetun")
    assert (known.returncode, names_in(known.stdout)) == (0, ["finetune.epochs"])
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "did you mean finetune?" in unknown.stderr
    assert "Traceback" not in unknown.stderr


def test_a_terminal_s_width_is_used(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "150", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(SWEEPS / "probe.py"), "--help", "search.concurrency"]
    subprocess.run(command, cwd=tmp_path, env=environment, stdout=theirs, check=True, timeout=60)
    os.close(theirs)
    with os.fdopen(ours, "rb") as stream:
        lines = stream.read1().decode().splitlines()
    assert len(lines) == 2
    assert 100 < len(lines[1]) <= 150


@pytest.mark.parametrize(("flags", "word"), [(("--cfg", "job"), "epochs: 3"), (("--hydra-help",), "--multirun")])
def test_hydra_s_own_flags_stay(flags: tuple[str, ...], word: str, tmp_path: Path) -> None:
    result = run_entry(tmp_path, "finetune.epochs=3", *flags)
    assert result.returncode == 0
    assert word in result.stdout
