"""The benchmarks' records and what is made of them; no benchmark's numbers are judged here."""

import argparse
import datetime
import json
import math
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from scripts import load_script

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "ops" / "bench"
RECORDS: dict[str, dict[str, Any]] = {path.stem: json.loads(path.read_text()) for path in BENCH.glob("results/*.json")}
SCRIPTS = sorted(BENCH.glob("*.py"))
RECORD_KEYS = {"name", "command", "machine", "device", "date"}
FIGURE_KEYS = {"name", "ours", "theirs", "unit", "ratio", "device"}


@pytest.fixture
def readme(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH / "figures"))
    return load_script("bench/figures/readme")


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    module = load_script("bench/figures/record")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(module.torch.cuda, "is_available", lambda: False)
    return module


def figures(found: dict[str, Any]) -> list[dict[str, Any]]:
    return found.get("results", [found])


# --- what is committed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECORDS)
def test_a_committed_record_is_whole(name: str) -> None:
    found = RECORDS[name]
    assert found.keys() >= RECORD_KEYS
    assert found["name"] == name
    assert datetime.date.fromisoformat(found["date"])
    assert all(found[key] for key in RECORD_KEYS)
    names = [figure["name"] for figure in figures(found)]
    assert len(set(names)) == len(names)
    for figure in figures(found):
        assert figure.keys() >= FIGURE_KEYS
        ours, theirs, ratio = figure["ours"], figure["theirs"], figure["ratio"]
        if theirs is None:
            assert ratio is None
        elif ratio is not None:  # of either direction; sides are rounded to two or three digits
            assert math.isclose(ratio, ours / theirs, rel_tol=0.01) or math.isclose(ratio, theirs / ours, rel_tol=0.01)
    assert not re.search(r"[\" =](/|~)\w", json.dumps(found)), "a path of some machine"


def test_the_table_of_three_rates_is_that_of_its_trials() -> None:
    found = RECORDS["finetune_table"]
    for figure in found["results"]:
        of_rate = [
            100 * accuracy
            for selection, rate, _, accuracy in found["sets"][figure["set"]]["trials"]
            if (selection, rate) == (figure["selection"], figure["learning_rate"])
        ]
        assert len(of_rate) == figure["seeds"]
        assert figure["ours"] == pytest.approx(statistics.mean(of_rate), abs=0.06)
        assert figure["sd"] == pytest.approx(statistics.stdev(of_rate), abs=0.06)


# --- the READMEs ------------------------------------------------------------------------------------------------------


def test_the_readmes_are_those_of_the_records(readme: ModuleType) -> None:
    records = readme.read_records()
    assert records == RECORDS
    told = "run `make bench-readme`"
    assert (BENCH / "README.md").read_text(encoding="utf-8") == readme.bench_readme(records), told
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == readme.root_readme(text, records), told


def test_every_record_is_shown_with_its_origin(readme: ModuleType) -> None:
    other = {**RECORDS["pipeline_32px"], "name": "of_tomorrow", "command": "python ops/bench/of_tomorrow.py"}
    text = readme.bench_readme({**RECORDS, "of_tomorrow": other})
    for name, found in {**RECORDS, "of_tomorrow": other}.items():
        line = next(line for line in text.splitlines() if f"(results/{name}.json)" in line)
        for key in ("command", "machine", "date"):
            assert found[key] in line


def test_a_record_that_is_not_there_is_left_out(readme: ModuleType) -> None:
    assert "Probes" not in readme.bench_readme({name: found for name, found in RECORDS.items() if name != "probe"})


@pytest.mark.parametrize("path", [ROOT / "README.md", BENCH / "README.md"], ids=["root", "bench"])
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", path.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (path.parent / link).exists()] == []


# --- handing in -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [False, True])
def test_the_last_line_is_the_record(
    save: bool, record: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["ops/bench/x.py", "--data", "/home/me/flowers", "--steps", "3", "--save"])
    one, two = record.figure("a", 2.0, 3.0, "s"), record.figure("b", 2.00004, 3, "images/s", more_is_better=True)
    record.hand_in("x", [one, two], argparse.Namespace(save=save), steps=3)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found.keys() == {*RECORD_KEYS, "steps", "results"}
    assert found["command"] == "python ops/bench/x.py --data flowers --steps 3"
    assert [figure["ratio"] for figure in found["results"]] == [1.5, 0.6667]
    assert found["results"][1]["ours"] == 2.0
    saved = tmp_path / "results" / "x.json"
    assert saved.exists() == save
    assert not save or json.loads(saved.read_text()) == found


def test_a_lone_figure_stands_at_the_top(record: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    record.hand_in("x", [record.figure("a", 0, None, "s", pairs=7)], argparse.Namespace(save=False))
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == RECORD_KEYS | FIGURE_KEYS | {"pairs"}
    assert (found["name"], found["ours"], found["ratio"], found["pairs"]) == ("x", 0, None, 7)


# --- the scripts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_writes_nothing_by_itself(script: Path) -> None:
    """It hands in, takes --save, and needs no argument."""
    source = script.read_text(encoding="utf-8")
    assert "hand_in(" in source
    assert "make_parser(__doc__)" in source
    assert "required=True" not in source
    assert "write_text(json" not in source


def run_script(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / name), *options]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def test_a_small_run_hands_in_and_leaves_the_results_alone() -> None:
    before = {path: path.stat().st_mtime_ns for path in (BENCH / "results").iterdir()}
    done = run_script("pipeline.py", "--images", "8", "--batch-size", "2")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() >= RECORD_KEYS | FIGURE_KEYS
    assert {path: path.stat().st_mtime_ns for path in (BENCH / "results").iterdir()} == before


def test_half_of_what_is_needed_is_refused() -> None:
    done = run_script("plasticity_tables.py", "--weights", "x.safetensors")
    assert done.returncode == 2
    assert "--weights, --source and --targets go together" in done.stderr


# --- make bench -------------------------------------------------------------------------------------------------------


def test_make_bench_goes_on_and_names_what_failed(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    for name in ("requirements.lock", "pyproject.toml", ".venv/.ready", ".venv/bin/python", "ops/bench/figures/no.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".venv/bin/python").unlink()
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)
    for name, code in {"a": "print('one')", "b": "raise SystemExit(3)", "c": "print('two')"}.items():
        (tmp_path / "ops/bench" / f"{name}.py").write_text(code)
    os.utime(tmp_path / ".venv/.ready", (2**33, 2**33))  # newer than what it is made from
    command = ["make", "bench", "UV=Makefile", "--no-print-directory", "--silent"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert done.stdout.split("\n")[:5] == ["== ops/bench/a.py", "one", "== ops/bench/b.py", "== ops/bench/c.py", "two"]
    assert "failed: ops/bench/b.py\n" in done.stderr
    (tmp_path / "ops/bench/b.py").unlink()
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60).returncode == 0
