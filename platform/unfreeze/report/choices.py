"""Each selection at its own best learning rate, over seeds: the rows of a grid's table, and which images chose."""

from unfreeze.evidence.recommend import CHOSEN_ON_TEST, rates_text
from unfreeze.records import Evidence, Recommendation
from unfreeze.report.terminal import NOTHING

CHOICE_HEADINGS = ("selection", "learning rate", "val. accuracy", "test accuracy", "seeds", "trainable")


def choice_rows(evidence: Evidence) -> list[tuple[str, ...]]:
    """Best selection first; empty unless the sweep is a grid: any other runs some selections oftener than others.

    A test accuracy is there where the test images chose, and else for what was recommended alone: one run's.
    """
    if evidence.config["search"]["space"] != "grid":
        return []
    final = evidence.final
    rows: list[tuple[str, ...]] = []
    for choice in evidence.choices:
        test = NOTHING
        if choice.test_accuracy is not None:
            test = mean_and_sd(choice.test_accuracy, choice.test_accuracy_sd)
        elif final is not None and final.trial_id in choice.trial_ids:
            test = f"{final.test_accuracy:.2%} (1 run)"
        rows.append(
            (
                choice.selection,
                f"{choice.learning_rate:.3g}",
                mean_and_sd(choice.val_accuracy, choice.val_accuracy_sd),
                test,
                str(choice.num_seeds),
                f"{choice.trainable_parameters:,}",
            )
        )
    return rows


def choices_title(evidence: Evidence) -> str:
    """What the table's rows are, and which images chose where there was a choice."""
    title = f"Each selection {rates_text(evidence.choices)}"
    best = evidence.choices[0]
    several = best.select_on == "test" or any(choice.num_rates > 1 for choice in evidence.choices)
    return f"{title}: {chosen_on(best)}" if several else title


def chosen_on(choice: Recommendation) -> str:
    """Which images chose the learning rate, in words that say what it is worth."""
    return "learning rate chosen on validation accuracy" if choice.select_on == "val" else CHOSEN_ON_TEST


def mean_and_sd(mean: float, sd: float | None) -> str:
    """``98.91% ± 0.07``."""
    return f"{mean:.2%}" + ("" if sd is None else f" ± {100 * sd:.2f}")
