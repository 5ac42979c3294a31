"""The sweep's answer with its evidence, for a terminal and as one HTML file."""

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from unfreeze.evidence.correlate import coefficient_text
from unfreeze.evidence.power import settling
from unfreeze.evidence.recommend import rates_text
from unfreeze.evidence.verdict import points, verdict
from unfreeze.records import (
    Correlation,
    Evidence,
    ScoreWorth,
    TrialRecord,
    TrialState,
    to_dict,
)
from unfreeze.report.choices import CHOICE_HEADINGS, choice_rows, choices_title, chosen_on, mean_and_sd
from unfreeze.report.front import FRONT_HEADINGS, front_rows
from unfreeze.report.plasticity import (
    bound_lines,
    confidence,
    plasticity_context,
    plasticity_table,
    ranking_lines,
)
from unfreeze.report.settings import flatten
from unfreeze.report.terminal import NOTHING, make_console, make_table, print_lines, text_of

SETTLED = 0.9  # probability from which a choice is called settled
WORTH_HEADINGS = ("score", "points of accuracy [95 %]", "P(β > 0)", "p", "Bayes factor")
_WORTH_TITLE = "What one standard deviation more of each score is worth, size held fixed"
_NEAR_END = 1.2  # times an end of the range of learning rates is still at that end

_CAPTIONS = {
    "plasticity_by_block": "Plasticity of each component by block; bands are {interval}.",
    "plasticity_distribution": "Plasticity of single pairs (where pairs were crossed: of groups that share images), "
    "averaged over blocks. Boxes hold the middle half, whiskers end at the 5 and 95 % quantiles; the line is the "
    "median, the diamond the mean.",
    "plasticity_against_bound": "Rates of change in each block and their upper bounds. The published bound is what the "
    "paper’s code computes; the valid one holds for every measured pair. MHA has a scale of its own.",
    "accuracy_against_plasticity": "Validation accuracy of each selection {rates}, finished trials only. "
    "Single components are named and coloured; other selections are grey.",
    "best_so_far": "Every trial in sequence. The line is the best finished trial so far; hollow marks did not finish.",
    "accuracy_against_parameters": "What accuracy costs in trainable parameters. The line joins the selections that "
    "no smaller one matches.",
}


def terminal_report(evidence: Evidence) -> str:
    """The report as plain text, 100 columns, without colour codes."""
    console = make_console()
    console.print(make_table(f"Recommendation of {evidence.sweep}", ("", ""), recommendation_rows(evidence)))
    console.print(plasticity_table(evidence.plasticity))
    print_lines(console, [*ranking_lines(evidence.plasticity), *bound_lines(evidence.plasticity)])
    if choices := choice_rows(evidence):
        console.print(make_table(choices_title(evidence), CHOICE_HEADINGS, choices))
    headings: tuple[str, ...] = ("selection", "state", "val. accuracy", "learning rate", "seed", "trainable", "origin")
    console.print(make_table("Best trial per selection", headings, [_trial_row(t) for t in best_trials(evidence)[:10]]))
    if front := front_rows(evidence):
        console.print(make_table("Accuracy against cost", FRONT_HEADINGS, front))
    console.print(f"\nDoes plasticity predict accuracy here?\n{verdict(evidence.worths)}\n", markup=False)
    if line := settling(evidence.worths):
        console.print(f"{line}\n", markup=False)
    if evidence.worths:
        console.print(make_table(_WORTH_TITLE, WORTH_HEADINGS, [worth_row(worth) for worth in evidence.worths]))
    headings = ("over", "mode", "n", "Spearman", "Kendall")
    rows = [correlation_row(correlation) for correlation in evidence.correlations]
    console.print(make_table("Plasticity and accuracy, as description", headings, rows))
    if evidence.final is not None:
        # Never wrapped, so that it can be copied.
        console.print(f"\nLoad the exported model:\n{load_lines(evidence)}", markup=False, soft_wrap=True)
    return text_of(console)


def html_report(evidence: Evidence, figures: Mapping[str, str] | None = None) -> str:
    """The report as one HTML file that loads nothing and runs no script; ``figures`` are those of `render_all`."""
    if figures is None:
        from unfreeze.report.figures import render_all  # matplotlib takes a second

        figures = render_all(evidence)
    table = evidence.plasticity
    captioned = {name: (svg, _caption(name, evidence)) for name, svg in figures.items()}
    environment = Environment(
        loader=PackageLoader("unfreeze.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html.j2").render(
        evidence=evidence,
        recommendation=recommendation_rows(evidence),
        seal=_seal_line(evidence),
        choice_headings=CHOICE_HEADINGS,
        choices=choice_rows(evidence),
        choices_title=choices_title(evidence) if evidence.choices else "",
        front_headings=FRONT_HEADINGS,
        front=front_rows(evidence),
        load_lines=load_lines(evidence) if evidence.final else None,
        verdict=verdict(evidence.worths),
        settling=settling(evidence.worths),
        worth_headings=WORTH_HEADINGS,
        worths=[worth_row(worth) for worth in evidence.worths],
        correlations=[(*correlation_row(c), c.held_fixed) for c in evidence.correlations],
        pre_pass_figures=[shown for name, shown in captioned.items() if name.startswith("plasticity_")],
        figures=[shown for name, shown in captioned.items() if not name.startswith("plasticity_")],
        **plasticity_context(table),
        trials=[(trial.spec.trial_id, *_trial_row(trial), trial.error or "") for trial in evidence.trials],
        config=flatten(evidence.config),
        facts=flatten({"model": _without_groups(to_dict(evidence.model)), "data": to_dict(evidence.data)}),
        settings=flatten(table.settings),
    )


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
    rows += standing_rows(evidence)
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


def best_trials(evidence: Evidence) -> list[TrialRecord]:
    """The trial with the best validation accuracy of each selection, best first.

    Finished ones come before all others: what was stopped or diverged has no result, however high it once stood.
    """
    best: dict[str, TrialRecord] = {}

    def merit(trial: TrialRecord) -> tuple[bool, float]:
        return trial.state is TrialState.FINISHED, trial.best_val_accuracy or 0.0

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


def _seal_line(evidence: Evidence) -> str:
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


def _trial_row(trial: TrialRecord) -> tuple[str, ...]:
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


def _caption(name: str, evidence: Evidence) -> str:
    table = evidence.plasticity
    interval = f"{confidence(table)} intervals of the mean over pairs"
    if "confidence" in table.settings:  # before it was a setting, intervals were Student's, for a fixed number of pairs
        interval += ", valid whenever the measurement stopped"
    return next(text for stem, text in _CAPTIONS.items() if name.startswith(stem)).format(
        interval=interval, rates=rates_text(evidence.choices)
    )


def _without_groups(model: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in model.items() if key != "parameters"}
