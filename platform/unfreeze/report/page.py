"""The sweep's answer with its evidence, for a terminal and as one HTML file."""

from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from unfreeze.evidence.power import settling
from unfreeze.evidence.verdict import headline, verdict, word_of
from unfreeze.records import Evidence, MlflowPlace, TrialRecord, TrialState, to_dict
from unfreeze.report.answer import (
    IMPORTANCE_HEADINGS,
    IMPORTANCE_TITLE,
    TRIAL_HEADINGS,
    WORTH_HEADINGS,
    WORTH_TITLE,
    best_trials,
    correlation_row,
    importance_rows,
    load_lines,
    recommendation_rows,
    seal_line,
    trial_row,
    worth_row,
)
from unfreeze.report.choices import CHOICE_HEADINGS, choice_rows, choices_title
from unfreeze.report.front import FRONT_HEADINGS, front_rows
from unfreeze.report.links import run_link
from unfreeze.report.plasticity import bound_lines, plasticity_context, plasticity_table, ranking_lines
from unfreeze.report.settings import flatten
from unfreeze.report.terminal import NOTHING, make_console, make_table, print_lines, text_of
from unfreeze.report.vega import Chart, javascript, page_data

_FIRST = "accuracy_against_plasticity"  # beside the verdict
_WORTH = "worth_of_scores"
_RELOAD_S = 30


def terminal_report(evidence: Evidence) -> str:
    """The report as plain text, 100 columns, without colour codes."""
    console = make_console()
    console.print(make_table(f"Recommendation of {evidence.sweep}", ("", ""), recommendation_rows(evidence)))
    console.print(plasticity_table(evidence.plasticity))
    print_lines(console, [*ranking_lines(evidence.plasticity), *bound_lines(evidence.plasticity)])
    if choices := choice_rows(evidence):
        console.print(make_table(choices_title(evidence), CHOICE_HEADINGS, choices))
    console.print(
        make_table("Best trial per selection", TRIAL_HEADINGS, [trial_row(t) for t in best_trials(evidence)[:10]])
    )
    if front := front_rows(evidence):
        console.print(make_table("Accuracy against cost", FRONT_HEADINGS, front))
    console.print(f"\nDoes plasticity predict accuracy here?\n{verdict(evidence.worths)}\n", markup=False)
    if line := settling(evidence.worths):
        console.print(f"{line}\n", markup=False)
    if evidence.worths:
        console.print(make_table(WORTH_TITLE, WORTH_HEADINGS, [worth_row(worth) for worth in evidence.worths]))
    if shares := importance_rows(evidence):
        console.print(make_table(IMPORTANCE_TITLE, IMPORTANCE_HEADINGS, shares))
    headings = ("over", "mode", "n", "Spearman", "Kendall")
    rows = [correlation_row(correlation) for correlation in evidence.correlations]
    console.print(make_table("Plasticity and accuracy, as description", headings, rows))
    if evidence.final is not None:
        # Never wrapped, so that it can be copied.
        console.print(f"\nLoad the exported model:\n{load_lines(evidence)}", markup=False, soft_wrap=True)
    return text_of(console)


def html_report(evidence: Evidence) -> str:
    """The report as one HTML file that loads nothing: its charts, and what draws them, are in it."""
    from unfreeze.report.charts import trial_charts  # scipy, which only a page needs
    from unfreeze.report.plasticity_charts import pre_pass_charts

    pre_pass, charts = pre_pass_charts(evidence.plasticity), trial_charts(evidence)
    first = next((chart for chart in charts if chart.name.startswith(_FIRST)), None)
    return render_page(
        "report.html.j2",
        [*pre_pass, *charts],
        evidence=evidence,
        reload_s=None if evidence.has_ended else _RELOAD_S,
        recommendation=recommendation_rows(evidence),
        seal=seal_line(evidence),
        choice_headings=CHOICE_HEADINGS,
        choices=choice_rows(evidence),
        choices_title=choices_title(evidence) if evidence.choices else "",
        front_headings=FRONT_HEADINGS,
        front=front_rows(evidence),
        load_lines=load_lines(evidence) if evidence.final else None,
        word=word_of(headline(evidence.worths)).capitalize(),
        verdict=verdict(evidence.worths),
        settling=settling(evidence.worths),
        worth_headings=WORTH_HEADINGS,
        worths=[worth_row(worth) for worth in evidence.worths],
        importance_headings=IMPORTANCE_HEADINGS,
        importance_title=IMPORTANCE_TITLE,
        importances=importance_rows(evidence),
        correlations=[(*correlation_row(c), c.held_fixed) for c in evidence.correlations],
        first_chart=first,
        worth_chart=next((chart for chart in charts if chart.name == _WORTH), None),
        pre_pass_charts=pre_pass,
        charts=[chart for chart in charts if chart is not first and chart.name != _WORTH],
        **plasticity_context(evidence.plasticity),
        trials=[_trial_cells(trial, evidence.mlflow) for trial in evidence.trials],
        states=[state.value for state in TrialState if any(trial.state is state for trial in evidence.trials)],
        config=flatten(evidence.config),
        facts=flatten({"model": _without_groups(to_dict(evidence.model)), "data": to_dict(evidence.data)}),
        settings=flatten(evidence.plasticity.settings),
    )


def render_page(template: str, drawn: list[Chart], **context: Any) -> str:
    """A template of this folder with its style, its script and the data of its charts."""
    environment = Environment(
        loader=PackageLoader("unfreeze.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    own = files("unfreeze.report")
    return environment.get_template(template).render(
        **context,
        style=own.joinpath("page.css").read_text("utf-8"),
        script=own.joinpath("page.js").read_text("utf-8"),
        vega=javascript(),
        data=page_data(drawn),
    )


def _trial_cells(trial: TrialRecord, mlflow: MlflowPlace | None) -> dict[str, Any]:
    """Of one row of the table of trials; ``…_value``: by which it sorts."""
    selection, state, accuracy, rate, seed, size, origin = trial_row(trial)
    seconds = trial.reports[-1].seconds if trial.reports else None
    return {
        "id": trial.spec.trial_id,
        # MLflow has a run for each trial that has ended.
        "link": run_link(mlflow, trial.spec.trial_id) if mlflow is not None and trial.state.is_final else "",
        "selection": selection,
        "state": state,
        "accuracy": accuracy,
        "accuracy_value": "" if trial.best_val_accuracy is None else trial.best_val_accuracy,
        "rate": rate,
        "rate_value": trial.spec.learning_rate,
        "seed": seed,
        "size": size,
        "size_value": trial.trainable_parameters,
        "seconds": NOTHING if seconds is None else f"{seconds:.1f}",
        "seconds_value": "" if seconds is None else seconds,
        "origin": origin,
        "error": trial.error or "",
    }


def _without_groups(model: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in model.items() if key != "parameters"}
