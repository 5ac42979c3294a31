"""Several sweeps in one report: each one's verdict, the pooled one, and the components against each other."""

from collections.abc import Iterator, Mapping

from unfreeze.evidence.correlate import SelectionScore, score_selections
from unfreeze.evidence.recommend import rates_text
from unfreeze.evidence.verdict import headline, points, pooled_sentence, pooled_word, verdict_word
from unfreeze.records import COMPONENTS, Evidence, PooledSweeps
from unfreeze.report.chart_data import Row, finite
from unfreeze.report.terminal import NOTHING, make_console, make_table, print_lines, text_of
from unfreeze.report.vega import Chart, by_component, hover, intervals, percent, responsive

_HEADINGS = ("sweep", "data", "trials", "points of accuracy [95 %]", "P(β > 0)", "p", "verdict")
_COMPARED = ("first", "second", "sets", "difference", "relative", "t-test p", "Wilcoxon p")
_LEFT_OUT = ("left out", "trials without", "learned on the others", "saved [95 %]")
_LEFT_OUT_TITLE = "Leave one set out: trials of a search until it is within half a point of the best"
_NOTE = (
    "Differences in points, first less second, and in percent of the second; paired t-test two-sided, Wilcoxon signed "
    "ranks one-sided (first is better), as published. Both take the sets as independent and count no comparison twice: "
    "a description."
)


def sets_report(evidence: Mapping[str, Evidence], pooled: PooledSweeps) -> str:
    """As plain text, 100 columns."""
    console = make_console()
    console.print(make_table("What one standard deviation more plasticity is worth", _HEADINGS, _set_rows(evidence)))
    print_lines(console, [f"Not pooled: {name}: {reason}." for name, reason in pooled.apart.items()])
    print_lines(console, ["", pooled_sentence(pooled), ""])
    if pooled.comparisons:
        console.print(make_table(_compared_title(evidence), _COMPARED, _compared_rows(pooled)))
        print_lines(console, [_ranks_line(pooled), _NOTE])
    if pooled.left_out:
        console.print(make_table(_LEFT_OUT_TITLE, _LEFT_OUT, _left_out_rows(pooled)))
        print_lines(console, [_left_out_note(pooled)])
    return text_of(console)


def sets_page(evidence: Mapping[str, Evidence], pooled: PooledSweeps) -> str:
    """The same as one HTML file, with what each set says drawn above the average of all."""
    from unfreeze.report.page import render_page

    charts = [*_worth_by_set(evidence, pooled), *_accuracy_by_set(evidence)]
    return render_page(
        "sets.html.j2",
        charts,
        names=list(evidence),
        word=("undecided" if pooled.pooled is None else pooled_word(pooled.pooled)).capitalize(),
        sentence=pooled_sentence(pooled),
        apart=[f"Not pooled: {name}: {reason}." for name, reason in pooled.apart.items()],
        headings=_HEADINGS,
        rows=_set_rows(evidence),
        charts=charts,
        compared_title=_compared_title(evidence),
        compared_headings=_COMPARED,
        compared=_compared_rows(pooled),
        ranks=_ranks_line(pooled),
        note=_NOTE,
        left_out_title=_LEFT_OUT_TITLE,
        left_out_headings=_LEFT_OUT,
        left_out=_left_out_rows(pooled),
        left_out_note=_left_out_note(pooled),
    )


def _compared_title(evidence: Mapping[str, Evidence]) -> str:
    alone = [own for found in evidence.values() for own in _alone(found)]
    return f"Components over the sets, each alone {rates_text(alone)}"


def _alone(evidence: Evidence) -> list[SelectionScore]:
    """Each component alone, at its own best rate."""
    return [own for own in score_selections(evidence.trials, evidence.model) if str(own.selection) in COMPONENTS]


def _compared_rows(pooled: PooledSweeps) -> list[tuple[str, ...]]:
    return [
        (
            found.first,
            found.second,
            str(found.num_sets),
            f"{found.difference:+.3f}".replace("-", "−"),
            f"{found.relative:+.2f} %".replace("-", "−"),
            NOTHING if found.t_p is None else f"{found.t_p:.3g}",
            NOTHING if found.wilcoxon_p is None else f"{found.wilcoxon_p:.3g}",
        )
        for found in pooled.comparisons
    ]


def _left_out_rows(pooled: PooledSweeps) -> list[tuple[str, ...]]:
    return [
        (
            found.sweep,
            f"{found.alone:.1f}",
            f"{found.learned:.1f}",
            f"{found.saved:+.1f} [{found.low:.1f}, {found.high:.1f}]".replace("-", "−"),
        )
        for found in pooled.left_out
    ]


def _left_out_note(pooled: PooledSweeps) -> str:
    if not pooled.left_out:
        return ""
    return (
        f"Searches of whole components, nothing but what the model proposes (search.components_alone=false "
        f"search.baselines=[]), with search.learn_from the other sets and without it, "
        f"replayed on {pooled.left_out[0].num_truths} truths that the model holds possible after each set’s own trials."
    )


def _ranks_line(pooled: PooledSweeps) -> str:
    ranks = sorted(pooled.ranks.items(), key=lambda item: item[1])
    return f"Mean rank, 1 the best: {', '.join(f'{name} {rank:.2f}' for name, rank in ranks)}."


def _worth_by_set(evidence: Mapping[str, Evidence], pooled: PooledSweeps) -> Iterator[Chart]:
    rows: list[Row] = []
    for name, found in evidence.items():
        own = headline(found.worths)
        if own is not None and own.worth is not None:
            rows.append(_bar(name, own.worth.mean, own.worth.low, own.worth.high))
    if found_all := pooled.pooled:
        rows.append(_bar("average set", found_all.mean, found_all.low, found_all.high))
        if found_all.next_low is not None:
            rows.append(_bar("next set", found_all.mean, found_all.next_low, found_all.next_high))
    if rows:
        yield Chart(
            name="worth_by_set",
            title="What one standard deviation more plasticity is worth, set by set",
            caption="95 % intervals, size held fixed; below them the average set, and where the next is expected.",
            spec=intervals("sets", rows, "set", "points of accuracy"),
            data={"sets": rows},
        )


def _bar(name: str, mean: float, low: float | None, high: float | None) -> Row:
    ends = finite({"low": low, "high": high})
    return {"set": name, "mean": 100 * mean, **{key: end and 100 * end for key, end in ends.items()}}


def _accuracy_by_set(evidence: Mapping[str, Evidence]) -> Iterator[Chart]:
    rows: list[Row] = [
        {"set": name, "component": str(own.selection), "accuracy": own.val_accuracy}
        for name, found in evidence.items()
        for own in _alone(found)
    ]
    if rows:
        yield Chart(
            name="accuracy_by_set",
            title="Accuracy of each component alone, set by set",
            caption="Validation accuracy, the mean over seeds at the chosen rate.",
            spec=responsive(
                {
                    "data": {"name": "alone"},
                    "mark": {"type": "point", "filled": True, "size": 70},
                    "encoding": {
                        "x": percent("accuracy", "validation accuracy"),
                        "y": {"field": "set", "type": "nominal", "title": None, "sort": list(evidence)},
                        **by_component("component", COMPONENTS),
                        "tooltip": hover(set="sweep", component="component", accuracy="val. accuracy|.2%"),
                    },
                },
                height=60 + 26 * len(evidence),
            ),
            data={"alone": rows},
        )


def _set_rows(evidence: Mapping[str, Evidence]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, found in evidence.items():
        own = headline(found.worths)
        if own is None or own.worth is None:
            number, sure, p, word = NOTHING, NOTHING, NOTHING, "no number"
        else:
            worth = own.worth
            number = f"{points(worth.mean, '+')} [{points(worth.low)}, {points(worth.high)}]"
            sure, p, word = f"{worth.positive:.2f}", f"{worth.p:.3f}", verdict_word(worth)
        trials = str(own.num_trials) if own else "0"
        rows.append((name, found.data.name, trials, number, sure, p, word))
    return rows
