"""The answer as rows and lines of text: the terminal and the page say it in the same words."""

import math
from typing import Any

from unfreeze.components.selection import parse_selection
from unfreeze.evidence.correlate import coefficient_text
from unfreeze.evidence.verdict import points
from unfreeze.records import Correlation, Evidence, ScoreWorth, TrialRecord, TrialState
from unfreeze.report.chart_data import cost_of
from unfreeze.report.choices import chosen_on, mean_and_sd
from unfreeze.report.terminal import NOTHING

SETTLED = 0.9  # probability from which a choice is called settled
WORTH_HEADINGS = ("score", "points of accuracy [95 %]", "P(β > 0)", "p", "Bayes factor")
WORTH_TITLE = "What one standard deviation more of each score is worth, size held fixed"
TRIAL_HEADINGS = ("selection", "state", "val. accuracy", "learning rate", "seed", "trainable", "origin")
IMPORTANCE_HEADINGS = ("parameter", "share of what told the best third of the trials from the rest (PED-ANOVA)")
IMPORTANCE_TITLE = "Importance of each parameter"
_MOST_PARAMETERS = 10
_NEAR_END = 1.2  # times an end of the range of learning rates is still at that end


def recommendation_rows(evidence: Evidence) -> list[tuple[str, str]]:
    """(what, value) of the recommendation and, once opened, of the sealed test."""
    chosen, final = evidence.recommendation, evidence.final
    if chosen is None:
        return [("unfreeze", "nothing yet: no trial has finished")]
    seeds = "1 seed" if chosen.num_seeds == 1 else f"{chosen.num_seeds} seeds"
    basis = f"({'mean ± sd over ' if chosen.num_seeds > 1 else ''}{seeds})"
    share = chosen.trainable_parameters / evidence.model.num_parameters
    rows = [
        ("unfreeze", chosen.selection),
        ("learning rate", f"{chosen.learning_rate:.3g}{_at_an_end(chosen.learning_rate, evidence.config['search'])}"),
        ("validation accuracy", f"{mean_and_sd(chosen.val_accuracy, chosen.val_accuracy_sd)} {basis}"),
        ("trainable parameters", f"{chosen.trainable_parameters:,} ({share:.1%} of the model, head included)"),
    ]
    rows += [*standing_rows(evidence), *_against_all(evidence)]
    if chosen.test_accuracy is not None:
        rows.append(("chosen on", chosen_on(chosen)))
        rows.append(("mean test accuracy", f"{mean_and_sd(chosen.test_accuracy, chosen.test_accuracy_sd)} {basis}"))
    if final is not None:
        interval = f"[{final.test_low:.2%}, {final.test_high:.2%}]"
        what = "test accuracy" if final.select_on == "val" else "of the exported run"
        rows.append((what, f"{final.test_accuracy:.2%} {interval} (95 % Wilson, n = {final.num_test})"))
        if final.num_val:
            rows.append(("exported, validation", f"{final.val_accuracy:.2%} (n = {final.num_val}), loaded as below"))
        if final.num_val and final.probe_correct is not None:
            probe = f"{final.probe_correct / final.num_val:.2%} (validation, n = {final.num_val}): nothing finetuned"
            rows.append(("ridge probe of the head", probe))
    rows += [("caution", line) for line in evidence.cautions]
    return rows


def standing_rows(evidence: Evidence) -> list[tuple[str, str]]:
    """What the model of the evidence says of the recommendation; nothing where it did not search."""
    chosen = evidence.recommendation
    assert chosen is not None
    standing = {(c.selection, c.learning_rate): c for c in evidence.contenders}
    own = standing.get((chosen.selection, chosen.learning_rate))
    if own is None:
        return []
    points = f"{100 * own.tolerance:g} points"
    if own.near_best >= SETTLED:
        verdict = f"settled: within {points} of the best with probability {own.near_best:.0%}"
    else:
        verdict = f"undecided: within {points} of the best with probability {own.near_best:.0%}"
        rivals = [c for c in evidence.contenders if c.selection != own.selection]
        if rivals:
            sizes = {trial.spec.selection: trial.trainable_parameters for trial in evidence.trials}
            cheaper = ", cheaper" if sizes[rivals[0].selection] < chosen.trainable_parameters else ""
            verdict += f"; next is {rivals[0].selection} ({rivals[0].expected:.2%}{cheaper})"
    rows = [
        ("expected accuracy", f"{own.expected:.2%} [{own.low:.2%}, {own.high:.2%}] (by all trials; 95 %)"),
        ("choice", f"{verdict}; {100 * own.loss:.2f} points given away on average"),
    ]
    search = evidence.config["search"]
    tried = sum(trial.spec.origin != "confirm" for trial in evidence.trials)
    if search.get("settle") is not None and tried < search["num_trials"] and len(evidence.trials) > tried:
        reason = f"settled to {search['settle']:g} points (search.settle)"
        rows.append(("search ended", f"after {tried} of {search['num_trials']} trials: {reason}"))
    return rows


def _against_all(evidence: Evidence) -> list[tuple[str, str]]:
    """What the recommendation costs beside training everything, and how that did if it was tried."""
    chosen = evidence.recommendation
    assert chosen is not None
    if chosen.selection == "all":
        return []
    parameters = chosen.trainable_parameters / evidence.model.num_parameters
    cost, parts = cost_of(evidence), [f"{parameters:.1%} of its trained parameters"]
    if cost is not None:
        selection = parse_selection(chosen.selection, num_blocks=evidence.model.num_blocks)
        parts.insert(0, f"{cost.flops_share(selection):.1%} of its training FLOPs")
    found = [c for c in evidence.contenders if c.selection == "all"]
    tried = [choice for choice in evidence.choices if choice.selection == "all"]
    if found:
        did = f"it is expected at {found[0].expected:.2%} [{found[0].low:.2%}, {found[0].high:.2%}]"
    elif tried:
        did = f"it reached {mean_and_sd(tried[0].val_accuracy, tried[0].val_accuracy_sd)}"
    else:
        did = "it was not tried"
    return [("against all", f"{', '.join(parts)}; {did}")]


def _at_an_end(rate: float, search: dict[str, Any]) -> str:
    """Whether a better rate may lie outside what was allowed; older sweeps' ranges never grew."""
    if search["space"] == "grid" or search["learning_rate_low"] == search["learning_rate_high"]:
        return ""
    low, high = search["learning_rate_low"], search["learning_rate_high"]
    reach = 10 if search.get("extend_rates", False) and search["sampler"] == "model" else 1
    if not _NEAR_END * low / reach <= rate <= high * reach / _NEAR_END:
        name = "low" if rate < _NEAR_END * low else "high"
        return f" (at the end of what is tried, {low / reach:g} to {high * reach:g}; see search.learning_rate_{name})"
    return "" if low <= rate <= high else f" (the range, {low:g} to {high:g}, grew: its end did best)"


def worth_row(found: ScoreWorth) -> tuple[str, ...]:
    """A score's cells of `WORTH_HEADINGS`, or why it has none."""
    worth = found.worth
    if worth is None:
        return (found.score, f"no number: {found.trouble}", NOTHING, NOTHING, NOTHING)
    return (
        found.score,
        f"{points(worth.mean, '+')} [{points(worth.low)}, {points(worth.high)}]",
        f"{worth.positive:.2f}",
        f"{worth.p:.3f}",
        f"{worth.bayes_factor:.2g}",
    )


def importance_rows(evidence: Evidence) -> list[tuple[str, str]]:
    """The cells of `IMPORTANCE_HEADINGS`, ten rows at most."""
    return [(name, f"{share:.0%}") for name, share in list(evidence.importances.items())[:_MOST_PARAMETERS]]


def best_trials(evidence: Evidence) -> list[TrialRecord]:
    """The trial with the best validation accuracy of each selection, best first.

    Finished ones come before all others: what was stopped or diverged has no result, however high it once stood.
    """
    best: dict[str, TrialRecord] = {}

    def merit(trial: TrialRecord) -> tuple[bool, float]:
        accuracy = trial.best_val_accuracy
        return trial.state is TrialState.FINISHED, accuracy if accuracy and math.isfinite(accuracy) else 0.0

    for trial in sorted(evidence.trials, key=merit, reverse=True):
        best.setdefault(trial.spec.selection, trial)
    return list(best.values())


def correlation_row(correlation: Correlation) -> tuple[str, ...]:
    """What it is over, mode, n, and both coefficients with their p by exchange."""
    return (
        correlation.name.replace("_", " "),
        correlation.mode,
        str(correlation.n),
        coefficient_text("", correlation.spearman, correlation.spearman_p) or NOTHING,
        coefficient_text("", correlation.kendall, correlation.kendall_p) or NOTHING,
    )


def load_lines(evidence: Evidence) -> str:
    """The lines of Python that load the exported model and its preprocessing."""
    final = evidence.final
    assert final is not None, "there is no exported model before finalize"
    folder, comment = f"{str(evidence.config['storage']).rstrip('/')}/{evidence.sweep}/{final.export_folder}", ""
    if "://" in folder:
        folder, comment = final.export_folder, f"  # after copying {folder} here"
    # The embedded model becomes known to timm by this import.
    modules = "timm.data, unfreeze.models.tiny" if final.model_name == "unfreeze_tiny" else "timm.data"
    lines = [
        f"import {modules}",
        f"model = timm.create_model({f'local-dir:{folder}'!r}, pretrained=True).eval(){comment}",
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
    ]
    eps = evidence.config["model"]["layer_norm_eps"]
    if eps is not None:
        lines.append(
            f"# trained with LayerNorm eps {eps:g}, which timm's config cannot set: all figures are without it"
        )
    return "\n".join(lines)


def seal_line(evidence: Evidence) -> str:
    """What the choice saw of the test images."""
    if evidence.recommendation is not None and evidence.recommendation.select_on == "test":
        return f"Test images were opened for every trial: {chosen_on(evidence.recommendation)}."
    opened = "the test images are still sealed"
    if evidence.num_tested:
        opened = (
            f"yet an earlier run with search.select_on=test opened the test images for {evidence.num_tested} trials"
        )
    elif evidence.final is not None:
        opened = "the test images were opened once, after the choice"
    return f"Chosen on validation data only; {opened}."


def trial_row(trial: TrialRecord) -> tuple[str, ...]:
    accuracy = trial.best_val_accuracy
    return (
        trial.spec.selection,
        trial.state.value,
        NOTHING if accuracy is None else f"{accuracy:.2%}",
        f"{trial.spec.learning_rate:.3g}",
        str(trial.spec.seed),
        f"{trial.trainable_parameters:,}",
        trial.spec.origin,
    )
