"""How far a sweep is, in a line."""

import io

import pytest
from finished_sweep import make_trial
from rich.console import Console

from unfreeze.report.progress import Running, Standing, panel, summary, time_left


@pytest.mark.parametrize(
    ("gaps", "remaining", "words"),
    [
        ((), 5, ""),
        ((10.0,), 0, ""),
        ((10.0, 20.0), 4, "about 60 s"),
        ((10.0,) * 8, 5, "about 50 s (50 to 50)"),
        # sd 5, so 2·5·√(20 + 20²/4) = 110 either way
        ((5.0, 15.0, 15.0, 5.0), 20, "about 3 min (1 to 5)"),
        ((600.0,) * 4, 30, "about 5.0 h (5.0 to 5.0)"),
        ((1.0, 500.0, 2.0), 2, "about 6 min (0 to 23)"),
    ],
)
def test_time_left_and_how_sure_it_is(gaps: tuple[float, ...], remaining: int, words: str) -> None:
    assert time_left(gaps, remaining) == words


def standing(**values: object) -> Standing:
    usual = {
        "done": 3,
        "total": 8,
        "stopped": 1,
        "broken": 0,
        "running": (),
        "best": "",
        "images_per_s": None,
        "seconds": 0.0,
    }
    return Standing(**{**usual, "gaps": (), **values})  # type: ignore[arg-type]


def test_a_line_says_what_there_is_to_say() -> None:
    assert summary(standing()) == "3/8 trials done · 0 running · 1 stopped early"
    trains, waits = (
        Running(spec=make_trial(0, "mha", 0.9).spec, slot=slot, share=0.0, accuracy=None) for slot in ("slot-0", None)
    )
    assert summary(standing(running=(trains, waits, waits))) == (
        "3/8 trials done · 1 running · 2 waiting for a slot · 1 stopped early"
    )
    assert summary(standing(broken=2, best="90.0% (mha, lr 0.01)", images_per_s=1234.5, gaps=(3.0, 3.0))) == (
        "3/8 trials done · 0 running · 1 stopped early · 2 failed or diverged · best 90.0% (mha, lr 0.01) · "
        "1,234 images/s · about 15 s left"
    )


def test_no_color_means_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(file=io.StringIO(), force_terminal=True, width=50)  # so that the line breaks
    console.print(panel(standing(best="90.0% (mha, lr 0.01)", seconds=150.0)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "3/8 trials done" in text
    assert "trials · 2 min" in text
    assert "\x1b[3" not in text
