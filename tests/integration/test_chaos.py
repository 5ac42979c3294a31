"""A few cases of ops/chaos.py, which runs as many as it is asked for."""

import json

import pytest
from scripts import load_script

pytestmark = pytest.mark.ray

BRIEF = ["finetune.epochs=6", "search.num_trials=2"]


@pytest.mark.slow
def test_a_ledger_is_equal_although_the_board_died(capfd: pytest.CaptureFixture[str]) -> None:
    code = load_script("chaos").main(["--cases", "1", "--faults", "kill:board", "--", *BRIEF])
    said = capfd.readouterr()
    (line,) = map(json.loads, said.out.splitlines())
    assert code == 0, said
    assert line["codes"] == [0], said  # in one go: the sweep went on under another board


def test_a_case_is_sound_if_it_ends_well_with_words_and_an_equal_ledger() -> None:
    is_sound = load_script("chaos").is_sound
    case = {"fault": "kill:board", "happened": True, "codes": [0], "equal": True, "endings": []}
    assert is_sound(case)
    assert is_sound({**case, "codes": [75, 0], "endings": ["error: gone; run the same command and it goes on"]})
    assert is_sound({**case, "fault": "kill:driver", "codes": [-9, 0], "endings": ["3/6 trials done"]})
    wrong = [
        {"equal": False},
        {"happened": False},
        {"codes": [75]},
        {"codes": [1, 0], "endings": ["Traceback"]},
        {"codes": [75, None], "endings": ["run the same command"]},
    ]
    assert not any(is_sound({**case, **change}) for change in wrong)


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(SystemExit):
        load_script("chaos").main(["--faults", "kill:everything"])
