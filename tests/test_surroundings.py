"""The commands in the surroundings that people run them in: their shells, terminals, pipes, disks and variables.

None ends in a traceback, none exits 0 without its result in the place it named. What needs Ray is marked slow.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from arguments import for_hydra
from configuring import SWEEPS, composed, problems_of
from finished_sweep import make_evidence

from unfreeze.config import Config
from unfreeze.load import text_options
from unfreeze.records import to_dict
from unfreeze.report.streams import say
from unfreeze.storage.ledger import Ledger

ROOT = SWEEPS.parent
FULL = "standard output cannot be written: No space left on device"


def run(command: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command, without what a terminal would set; its output as Latin-1, which reads any bytes."""
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **variables}, capture_output=True, encoding="latin-1", timeout=60
    )


def shell(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A line of bash: ``$REPORT`` shows the sweep below ``folder``, ``$SHOW`` a line of which a copy is kept, ``$ONLY``
    one of which there is none.
    """
    code = "from unfreeze.report.streams import show, sound_streams\nwith sound_streams():\n    show('│ ü → é'"
    commands = {
        "$REPORT": [sys.executable, str(SWEEPS / "report.py"), "sweep.name=demo", f"storage={folder}/runs"],
        "$SHOW": [sys.executable, "-c", f"{code}, kept_at='report.html')"],
        "$ONLY": [sys.executable, str(SWEEPS / "report.py"), "--help"],
    }
    for name, command in commands.items():
        script = script.replace(name, shlex.join(command))
    return run(["bash", "-c", script], folder, **variables)


# --- terminals, pipes and disks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "code", "output", "errors"),
    [
        ("$SHOW", 0, "| ü -> é\n", ""),
        ("PYTHONIOENCODING=ascii $SHOW", 0, "| ? -> ?\n", ""),
        ("$SHOW | true; exit ${PIPESTATUS[0]}", 0, "", ""),
        ("$SHOW >/dev/full", 0, "", f"{FULL}; the result is in report.html\n"),
        ("$SHOW >/dev/full 2>&1", 0, "", ""),
        ("$SHOW >&- 2>&- <&-", 0, "", ""),
        ("$ONLY | head -1 >/dev/null; exit ${PIPESTATUS[0]}", 141, "", ""),
        ("$ONLY >/dev/full", 2, "", f"error: {FULL}; send it elsewhere\n"),
        ("$ONLY 2>&- >/dev/null", 0, "", ""),
    ],
)
def test_what_is_printed(script: str, code: int, output: str, errors: str, tmp_path: Path) -> None:
    result = shell(script, tmp_path, PYTHONIOENCODING="latin-1")
    assert (result.returncode, result.stdout, result.stderr) == (code, output, errors)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The folder of a finished sweep."""
    sweep = make_evidence()
    ledger = Ledger(str(tmp_path / "runs"), "demo")
    ledger.claim(Config())
    ledger.write_json("facts.json", {"model": to_dict(sweep.model), "data": to_dict(sweep.data)})
    ledger.write_json("plasticity.json", to_dict(sweep.plasticity))
    for trial in sweep.trials:
        ledger.write_trial(trial)
    return tmp_path / "runs/demo"


@pytest.mark.slow
def test_a_report_of_storage_that_may_only_be_read_on_a_terminal_without_lines(finished: Path, tmp_path: Path) -> None:
    (finished / "report.html").mkdir()  # no permission stops root, whom the tests may run as
    result = shell("$REPORT", tmp_path, PYTHONIOENCODING="latin-1", TERM="dumb", COLUMNS="7")
    assert result.returncode == 0
    assert "| unfreeze " in result.stdout
    assert "report: " not in result.stdout
    assert result.stderr.startswith("report.html is not written anew: cannot write ")
    assert result.stderr.count("\n") == 1


def test_progress_that_cannot_be_shown_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        say("one")
        say("another")
        monkeypatch.undo()
        with pytest.raises(OSError, match="No space"):
            full.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
    monkeypatch.setattr(sys, "stderr", None)
    say("without a stream")


# --- names and paths --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "20261127",
        "2026_11_27",
        "007",
        "1e5",
        "true",
        "nan",
        "ü ö",
        "a[b]{c}",
        "a,b=c#d",
        "it's",
        'say "x"',
        "\\",
        "\\'",
        "a\\b",
    ],
)
def test_a_text_on_the_command_line_is_text(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [for_hydra(f"{name}={text}") for name in ("storage", "trial.selection", "data.path")]
    raw = composed("data=folder", "data.source_path=/s", *arguments)
    assert (raw.storage, raw.trial.selection, raw.data.path) == (text, text, text)


@pytest.mark.parametrize(
    ("argument", "read"),
    [
        ("model.weights=null", None),
        ("model.weights='a b'", "a b"),
        ('model.weights="a:b(8)"', "a:b(8)"),
        ("model.weights=${storage}", "./runs"),
    ],
)
def test_null_quotes_and_references_are_what_they_are_in_hydra(argument: str, read: str | None) -> None:
    assert composed(for_hydra(argument)).model.weights == read


def test_what_is_no_text_is_left_to_hydra() -> None:
    for argument in ("--cfg", "job", "model=tiny", "hydra.run.dir=.", "experiment=demo", "+storage2=1"):
        assert for_hydra(argument) == argument
    assert for_hydra("finetune.epochs=3") == "++finetune.epochs=3"
    assert {"sweep.name", "storage", "data.path", "tracking.experiment"} <= text_options()
    assert not {"data.name", "finetune.epochs", "search.baselines", "cluster.num_slots"} & text_options()


@pytest.mark.parametrize("name", ["storage", "data.path", "data.cache_dir", "model.weights", "tracking.experiment"])
def test_an_unset_shell_variable_is_no_folder(name: str) -> None:
    section, _, option = name.rpartition(".")
    (problem,) = problems_of({section: {option: ""}} if section else {option: ""})
    assert problem.strip() == f"{name}: must not be empty, but got ''; an unset shell variable, perhaps"


@pytest.mark.parametrize(
    ("start", "variables"),
    [(["-m", "sweeps.report"], {}), (["sweeps/report.py"], {"PYTHONSAFEPATH": "1"}), (["-P", "sweeps/report.py"], {})],
)
def test_however_python_is_started(start: list[str], variables: dict[str, str]) -> None:
    result = run([sys.executable, *start, "--help", "storage"], ROOT, **variables)
    assert result.returncode == 0, result.stderr
    assert "storage = ./runs" in result.stdout


def test_a_checkout_in_an_odd_folder(tmp_path: Path) -> None:
    odd = tmp_path / "ü [a] b=c,d #"
    odd.mkdir()
    for name in ("platform", "sweeps"):
        (odd / name).symlink_to(ROOT / name)
    result = run([sys.executable, "sweeps/report.py", "sweep.name=none"], odd)
    assert result.returncode == 2
    assert result.stderr.startswith("error: there is no sweep in ")
