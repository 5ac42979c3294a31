import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfreeze.config import FinetuneConfig
from unfreeze.errors import ConfigError
from unfreeze.finetune.schedule import learning_rate_at, num_steps_of, rate_at, report_steps, total_steps


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


def test_steps_given_outright_leave_epochs_aside() -> None:
    assert total_steps(100, epochs=3.0, batch_size=10, steps=7) == 7
    config = FinetuneConfig(epochs=3.0, batch_size=512, steps=10_000)
    assert num_steps_of(config, 40_000) == 10_000
    assert num_steps_of(FinetuneConfig(epochs=3.0, batch_size=10), 100) == 30


def test_a_warm_up_as_long_as_the_trial_is_refused() -> None:
    config = FinetuneConfig(epochs=3.0, batch_size=10, warmup_steps=30)
    with pytest.raises(ConfigError, match="but got 30 and 30"):
        num_steps_of(config, 100)
    assert num_steps_of(config, 104) == 31


def paper_rate(step: int, *, peak: float, warmup: int, num_steps: int) -> float:
    """The multiplier of the paper's code (a LambdaLR of warm-up and half a cosine), written out."""
    if step < warmup:
        return peak * step / warmup
    return max(0.0, peak * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (num_steps - warmup))))


@pytest.mark.parametrize("num_steps", [4_000, 5_000, 10_000, 20_000])
def test_the_paper_s_schedule_step_for_step(num_steps: int) -> None:
    config = FinetuneConfig(steps=num_steps, warmup_steps=2_000, warmup_from_zero=True)
    rates = [rate_at(step, config, num_steps=num_steps, peak=0.03) for step in range(num_steps)]
    expected = [paper_rate(step, peak=0.03, warmup=2_000, num_steps=num_steps) for step in range(num_steps)]
    assert rates == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert (rates[0], rates[2_000]) == (0.0, 0.03)


def test_the_configured_share_is_used_where_no_steps_are_given() -> None:
    config = FinetuneConfig(warmup_share=0.25)
    rates = [rate_at(step, config, num_steps=20, peak=0.4) for step in range(20)]
    assert rates == [learning_rate_at(step, num_steps=20, peak=0.4, warmup_share=0.25) for step in range(20)]
    assert rate_at(0, FinetuneConfig(warmup_steps=0), num_steps=20, peak=0.4) == 0.4
