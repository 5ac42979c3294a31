"""Several sweeps in one report: each one's verdict, the pooled one, and the components against each other."""

from collections.abc import Mapping

from unfreeze.evidence.recommend import rates_text
from unfreeze.evidence.verdict import headline, points, pooled_sentence, verdict_word
from unfreeze.records import COMPONENTS, Evidence, PooledSweeps
from unfreeze.report.terminal import NOTHING, make_console, make_table, print_lines, text_of

_HEADINGS = ("sweep", "data", "trials", "points of accuracy [95 %]", "P(β > 0)", "p", "verdict")
_COMPARED = ("first", "second", "sets", "difference", "relative", "t-test p", "Wilcoxon p")
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
        rows = [
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
        alone = [own for found in evidence.values() for own in found.choices if own.selection in COMPONENTS]
        console.print(make_table(f"Components over the sets, each alone {rates_text(alone)}", _COMPARED, rows))
        ranks = ", ".join(f"{name} {rank:.2f}" for name, rank in sorted(pooled.ranks.items(), key=lambda item: item[1]))
        print_lines(console, [f"Mean rank, 1 the best: {ranks}.", _NOTE])
    return text_of(console)


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
