"""The paper's table, measured beside published."""

import math
from collections.abc import Mapping

from unfreeze.records import Evidence, Recommendation
from unfreeze.report.choices import chosen_on
from unfreeze.report.terminal import NOTHING, make_console, make_table, print_lines, text_of

_TO_SAMPLE = math.sqrt(3 / 2)  # of the published deviations, over three seeds and divided by n
_COLUMNS = ("mha", "fc1", "fc2", "ln2", "ln1", "all")

# arXiv 2602.06883: test accuracy in %, mean and sd (divided by n: ddof 0) over seeds 0, 42 and 3407, each at the
# learning rate that is best on the test images. Its linear probe has no counterpart among the seven selections; `embed`
# is not in its table.
PUBLISHED: dict[str, tuple[tuple[float, float], ...]] = {
    "cifar10": ((98.91, 0.07), (99.09, 0.05), (98.91, 0.06), (98.72, 0.05), (98.67, 0.03), (99.02, 0.02)),
    "cifar100": ((92.65, 0.07), (92.85, 0.07), (92.31, 0.11), (91.93, 0.11), (91.43, 0.07), (92.74, 0.05)),
    "cifar10c_contrast": ((97.09, 0.11), (97.06, 0.08), (96.28, 0.11), (96.67, 0.20), (96.89, 0.19), (97.23, 0.18)),
    "cifar10c_gaussian_noise": (
        (89.41, 0.53),
        (89.49, 0.16),
        (88.49, 0.51),
        (89.55, 0.04),
        (88.99, 0.24),
        (87.14, 1.16),
    ),
    "cifar10c_motion_blur": ((94.72, 0.21), (94.53, 0.06), (94.04, 0.16), (93.95, 0.34), (93.25, 0.29), (94.67, 0.14)),
    "cifar10c_snow": ((95.47, 0.13), (95.52, 0.20), (95.27, 0.29), (95.51, 0.11), (95.15, 0.10), (95.42, 0.13)),
    "cifar10c_speckle_noise": (
        (90.07, 0.32),
        (89.85, 0.34),
        (89.22, 0.31),
        (89.71, 0.17),
        (89.74, 0.31),
        (89.58, 0.43),
    ),
    "domainnet_clipart": ((77.31, 0.41), (76.47, 0.24), (76.54, 0.17), (74.37, 0.08), (74.65, 0.16), (78.50, 0.49)),
    "domainnet_sketch": ((69.23, 0.05), (69.31, 0.18), (69.49, 0.20), (65.27, 0.15), (65.76, 0.10), (71.30, 0.26)),
    "flowers102": ((99.03, 0.08), (99.05, 0.06), (98.86, 0.06), (99.21, 0.07), (98.99, 0.20), (99.15, 0.05)),
    "pet": ((94.37, 0.13), (94.26, 0.26), (93.98, 0.20), (94.39, 0.13), (94.46, 0.11), (94.57, 0.29)),
}


def paper_table(evidence: Mapping[str, Evidence]) -> str:
    """Set by set (`config.PaperSet`) the accuracy of each selection at its chosen rate, the published one below it.

    Measured is test accuracy where the test images chose, as published; else validation accuracy, and of the test no
    more than what was recommended.
    """
    rows = []
    for name, found in evidence.items():
        choices = {choice.selection: choice for choice in found.choices}
        measured = [_measured(choices.get(selection)) for selection in (*_COLUMNS, "embed")]
        rows.append((name.replace("_", " "), *measured))
        rows.append(("  published", *(_cell(mean, _TO_SAMPLE * sd) for mean, sd in PUBLISHED[name]), NOTHING))
    console = make_console()
    console.print(make_table("Accuracy in %, mean ± sd over seeds", ("set", *_COLUMNS, "embed"), rows))
    lines = []
    for name, found in evidence.items():
        if found.choices:
            what = "test" if found.choices[0].select_on == "test" else "validation"
            lines.append(f"{name}: {what} accuracy, {chosen_on(found.choices[0])}. {_recommended(found)}")
    lines.append("Published: test accuracy, learning rate chosen on test accuracy; optimistic.")
    lines.append("± is the sample standard deviation (ddof 1); published ones, of ddof 0, are multiplied by √(3/2).")
    print_lines(console, lines)
    return text_of(console)


def _measured(choice: Recommendation | None) -> str:
    if choice is None:
        return NOTHING
    if choice.test_accuracy is not None:
        return _cell(100 * choice.test_accuracy, _percent(choice.test_accuracy_sd))
    return _cell(100 * choice.val_accuracy, _percent(choice.val_accuracy_sd))


def _recommended(evidence: Evidence) -> str:
    chosen, final = evidence.recommendation, evidence.final
    if chosen is None or final is None:
        return "Nothing recommended yet."
    rate = f"{chosen.learning_rate:.3g}"
    return f"Recommended {chosen.selection} at {rate}: {final.test_accuracy:.2%} of {final.num_test:,} test images."


def _cell(mean: float, sd: float | None) -> str:
    """``98.91±.07``, as published."""
    return f"{mean:.2f}" if sd is None else f"{mean:.2f}±{sd:.2f}".replace("±0.", "±.")


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
