"""What a trial will cost, and how far off that was, for a terminal."""

from unfreeze.cost.model import TrialCost
from unfreeze.report.terminal import make_console, make_table, print_lines, text_of

_GIB = 2**30


def terminal_cost(cost: TrialCost) -> str:
    """The dry run of one trial."""
    memory = cost.memory
    rows = [
        ("train", cost.selection),
        ("trained parameters", f"{cost.num_trained:,} ({cost.trained_share:.2%} of the model, head included)"),
        ("optimizer steps", f"{cost.num_steps:,}, {cost.images:,} images"),
        ("FLOPs of a step", f"{cost.flops_per_step:.3g} ({cost.flops_share:.1%} of training all)"),
        ("peak memory", f"{memory.peak / _GIB:.3g} GiB, of it {memory.kept / _GIB:.3g} GiB activations"),
        ("a step", f"{cost.step_s:.3g} s"),
        ("the trial", f"{cost.total_s:.3g} s, training and validation"),
    ]
    console = make_console()
    console.print(make_table("Predicted; nothing was trained", ("", ""), rows))
    print_lines(console, ["Seconds are from six measured steps on random images; reading images comes on top."])
    return text_of(console)


def prediction_line(cost: TrialCost, measured_s: float) -> str:
    """Predicted against measured seconds of a trial that ran."""
    error = cost.total_s / measured_s - 1
    return f"predicted {cost.total_s:.1f} s, took {measured_s:.1f} s: the prediction is off by {error:+.0%}"
