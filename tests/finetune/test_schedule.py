import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfreeze.finetune.schedule import learning_rate_at, report_steps, total_steps


@pytest.mark.parametrize(
    ("num_images", "epochs", "batch_size", "expected"),
    [
        (100, 1.0, 10, 10),
        (100, 2.5, 10, 25),
        (100, 0.5, 64, 1),
        (7, 0.1, 64, 1),
        (105, 1.0, 10, 10),
        (640, 3.0, 64, 30),
    ],
)
def test_total_steps(num_images: int, epochs: float, batch_size: int, expected: int) -> None:
    assert total_steps(num_images, epochs=epochs, batch_size=batch_size) == expected


@given(num_steps=st.integers(1, 3000), num_reports=st.integers(1, 60))
def test_reports_are_evenly_spaced_and_end_with_the_last_step(num_steps: int, num_reports: int) -> None:
    steps = report_steps(num_steps, num_reports)
    assert len(steps) == min(num_reports, num_steps)
    assert steps[-1] == num_steps
    gaps = [after - before for before, after in zip([0, *steps], steps, strict=False)]
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 2
    even = num_steps / len(steps)
    assert all(abs(step - even * (k + 1)) <= 0.5 + 1e-9 for k, step in enumerate(steps))


def test_warm_up_is_linear_and_decay_half_a_cosine() -> None:
    rates = [learning_rate_at(step, num_steps=20, peak=0.4, warmup_share=0.25) for step in range(20)]
    assert rates[:5] == pytest.approx([0.08, 0.16, 0.24, 0.32, 0.4])
    expected = [0.4 * 0.5 * (1 + math.cos(math.pi * k / 15)) for k in range(15)]
    assert rates[5:] == pytest.approx(expected)


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert learning_rate_at(0, num_steps=10, peak=0.3, warmup_share=0.0) == pytest.approx(0.3)


@given(
    num_steps=st.integers(1, 500),
    warmup_share=st.floats(0, 1, exclude_max=True),
    peak=st.floats(1e-6, 10),
)
def test_rates_rise_to_the_peak_then_fall_and_stay_within_it(num_steps: int, warmup_share: float, peak: float) -> None:
    rates = [learning_rate_at(s, num_steps=num_steps, peak=peak, warmup_share=warmup_share) for s in range(num_steps)]
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) == pytest.approx(peak)
