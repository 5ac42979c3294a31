import pytest

from unfreeze.records import TrialReport
from unfreeze.slots.cutoff import best_until, misses_cutoff


def reports(*accuracies: float) -> list[TrialReport]:
    """One report each 100 images."""
    return [
        TrialReport(
            images_seen=100 * (k + 1), train_loss=1.0, val_loss=1.0, val_accuracy=value, seconds=1.0, timestamp_ms=0
        )
        for k, value in enumerate(accuracies)
    ]


@pytest.mark.parametrize(("images_seen", "expected"), [(100, 0.3), (200, 0.6), (300, 0.6), (250, 0.6), (400, None)])
def test_best_until(images_seen: int, expected: float | None) -> None:
    assert best_until(reports(0.3, 0.6, 0.5), images_seen) == expected


def test_best_until_without_reports_is_none() -> None:
    assert best_until([], 100) is None


def test_a_later_record_does_not_count_for_an_earlier_rung() -> None:
    assert best_until(reports(0.3, 0.4, 0.9), 200) == 0.4


@pytest.mark.parametrize(
    ("accuracies", "stop_below", "expected"),
    [
        ((0.3, 0.4), ((200, 0.5),), True),
        ((0.3, 0.5), ((200, 0.5),), False),  # reaching the cutoff is enough
        ((0.6, 0.4), ((200, 0.5),), False),  # the best counts, not the last
        ((0.3,), ((200, 0.5),), False),  # not on the rung yet
        ((0.3, 0.4, 0.4), ((200, 0.5),), False),  # past it
        ((0.3, 0.4, 0.4), ((100, 0.2), (300, 0.5)), True),
        ((0.3, 0.4), (), False),
    ],
)
def test_a_trial_stops_at_the_rung_it_misses(
    accuracies: tuple[float, ...], stop_below: tuple[tuple[int, float], ...], expected: bool
) -> None:
    assert misses_cutoff(reports(*accuracies), stop_below) is expected
