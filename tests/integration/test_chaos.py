"""A few cases of ops/chaos.py, which runs as many as it is asked for."""

import itertools
import json
from pathlib import Path

import pytest
from scripts import load_script

pytestmark = pytest.mark.ray

SOUND = {
    "faults": ["kill:board"],
    "happened": [True],
    "codes": [0],
    "equal": True,
    "run_twice": [],
    "redone": 0,
    "endings": [],
    "left": [],
}


@pytest.mark.slow
def test_a_ledger_is_equal_although_the_board_died(capfd: pytest.CaptureFixture[str]) -> None:
    code = load_script("chaos").main(["--cases", "1", "--faults", "kill:board"])
    said = capfd.readouterr()
    (line,) = map(json.loads, said.out.splitlines())
    assert code == 0, line
    assert line["codes"] == [0], line  # in one go: the sweep went on under another board


def test_a_case_is_sound_if_it_ends_well_with_words_and_an_equal_ledger() -> None:
    is_sound = load_script("chaos").is_sound
    assert is_sound(SOUND)
    assert is_sound({**SOUND, "codes": [75, 0], "endings": ["error: gone; run the same command and it goes on"]})
    assert is_sound({**SOUND, "codes": [-9, 0], "endings": ["3/6 trials done"], "redone": 1})
    wrong = [
        {"equal": False},
        {"happened": [False]},
        {"codes": [75]},
        {"left": ["ray::DashboardAgent"]},
        {"run_twice": ["trial-00001"]},
        {"redone": 2},
        {"codes": [1, 0], "endings": ["Traceback"]},
        {"codes": [75, None], "endings": ["run the same command"]},
    ]
    assert not any(is_sound({**SOUND, **change}) for change in wrong)


def test_the_runbook_shows_what_is_kept() -> None:
    chaos = load_script("chaos")
    kept = (chaos.ROOT / "ops/bench/results/chaos.jsonl").read_text().splitlines()
    assert chaos.table(list(map(json.loads, kept))) in (chaos.ROOT / "ops/README.md").read_text()


def test_each_fault_is_chosen_as_often_as_any_other_and_by_the_seed() -> None:
    chaos = load_script("chaos")
    first = list(itertools.islice(chaos.chosen(chaos.FAULTS, 3), 3 * len(chaos.FAULTS)))
    assert all(first.count(fault) == 3 for fault in chaos.FAULTS)
    assert first == list(itertools.islice(chaos.chosen(chaos.FAULTS, 3), len(first)))


def test_the_table_counts_hits_and_the_sweeps_that_stood_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        {**SOUND, "faults": ["kill:board", "kill:board"], "happened": [True, True]},
        {**SOUND, "faults": ["kill:board", "stop:gcs"], "happened": [True, False], "equal": False},
        {**SOUND, "faults": ["stop:gcs"]},
    ]
    (tmp_path / "lines").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert load_script("chaos").main(["--table", str(tmp_path / "lines")]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[2:] == ["| kill:board | 3 | 2 | 1 |", "| stop:gcs | 1 | 1 | 1 |", "| all | 4 | 3 | 2 |"]


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(SystemExit):
        load_script("chaos").main(["--faults", "kill:everything"])
