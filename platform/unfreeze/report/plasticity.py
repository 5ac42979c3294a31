"""What the pre-pass found, in words and tables: for the terminal, and as rows for the page."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from unfreeze.evidence.correlate import agreement, coefficient_text
from unfreeze.plasticity.sequential import ROUNDING
from unfreeze.records import COMPONENTS, PlasticityTable
from unfreeze.report.terminal import NOTHING, make_console, make_table, print_lines, text_of

_AGREEMENT_HEADINGS = ("score", "over components", "n", "over the components of every block", "n")


_AGREEMENT_NOTE = (
    "p: share of the 120 exchanges of the components’ labels that agree as much; an interval over five components, or "
    "over blocks that share them, would claim too much."
)


def terminal_plasticity(table: PlasticityTable) -> str:
    """The pre-pass alone as plain text: plasticity in each mode, what is settled of it, and other scores beside it."""
    console = make_console()
    console.print(plasticity_table(table))
    print_lines(console, [*ranking_lines(table), *bound_lines(table), _cost_line(table)])
    if rows := score_rows(table):
        console.print(make_table("Scores side by side (rank)", ("score", *_by_plasticity(table)), rows))
        title = f"Rank agreement with {table.modes[0]}, Kendall’s τ"
        console.print(make_table(title, _AGREEMENT_HEADINGS, agreement_rows(table)))
        print_lines(console, [_AGREEMENT_NOTE])
    return text_of(console)


def confidence(table: PlasticityTable) -> str:
    """Of the table's intervals and order: ``95 %``, which is also what tables had that do not say."""
    return f"{100 * table.settings.get('confidence', 0.95):g} %"


def plasticity_rows(table: PlasticityTable) -> list[tuple[str, ...]]:
    """Component, then mean and interval in each mode; the most plastic first."""
    cells = {
        (row.component, row.mode): f"{row.mean:.3f} [{row.low:.3f}, {row.high:.3f}]"
        for row in table.rows
        if row.block is None
    }
    return [
        (component, *(cells.get((component, mode), NOTHING) for mode in table.modes))
        for component in _by_plasticity(table)
    ]


def ranking_lines(table: PlasticityTable) -> list[str]:
    """For each ranked mode the order of the components, the pairs it took and why no more were measured."""
    lines, tied = [], False
    for mode in table.modes:
        ranking = table.ranking(mode)
        if ranking is not None:
            pairs = next(row.num_pairs for row in table.rows if row.mode == mode)
            reason = f": {table.stopped[mode]}" if mode in table.stopped else ""
            lines.append(f"{mode}: {ranking} after {pairs:,} pairs{reason}")
            tied |= any(ranking.ties)
    return [*lines, f"≈: cannot be told apart at {confidence(table)} confidence"] if tied else lines


def bound_lines(table: PlasticityTable) -> list[str]:
    """For each mode with bounds: in how many blocks the published one is exceeded, and whether the valid one holds."""
    largest = {(row.mode, row.block, row.component): row.maximum for row in table.rows}
    # What a rate's own rounding can add is no excess.
    slack = 1 + ROUNDING[table.settings.get("precision", "float32")]
    lines = []
    for mode in table.modes:
        published: list[tuple[str, bool]] = []  # component, whether exceeded
        num_valid, broken = 0, []
        for bound in table.bounds:
            rate = largest.get((mode, bound.block, bound.component))
            if bound.mode != mode or rate is None:
                continue
            if bound.as_published is not None:
                published.append((bound.component, rate > bound.as_published * slack))
            if bound.valid is not None:
                num_valid += 1
                if rate > bound.valid * slack:
                    broken.append(f"{bound.block}.{bound.component} ({rate:.6g} > {bound.valid:.6g})")
        parts = [f"the largest rate exceeds the published bound {_where(published)}"] if published else []
        if num_valid and not broken:
            parts.append(f"the valid bound holds everywhere ({num_valid} checked)")
        if parts:
            lines.append(f"{mode}: {'; '.join(parts)}")
        if broken:
            lines.append(f"ERROR, a bug to report: {mode} rates are ABOVE THE VALID BOUND in {', '.join(broken)}")
    return lines


def score_rows(table: PlasticityTable) -> list[tuple[str, ...]]:
    """Every mode and rival score, each component's mean over blocks and rank; empty with nothing to compare."""
    if len(table.by_group) < 2:
        return []
    rows = []
    for name in table.by_group:
        means = table.component_means(name)
        ranks = {component: 1 + sum(other > value for other in means.values()) for component, value in means.items()}
        cells = [f"{_number(means[c])} ({ranks[c]})" if c in means else NOTHING for c in _by_plasticity(table)]
        rows.append((name, *cells))
    return rows


def agreement_rows(table: PlasticityTable) -> list[tuple[str, ...]]:
    """Kendall's τ of every other score with the first mode: over the components, then over those of every block; empty
    with nothing to compare."""
    by_group = table.by_group
    if len(by_group) < 2:
        return []
    first, *others = by_group
    num_blocks = 1 + max((int(group.partition(".")[0]) for group in by_group[first]), default=-1)
    rows: list[tuple[str, ...]] = []
    for name in others:
        over_components, n = agreement(table.component_means(first), table.component_means(name), num_blocks=0)
        over_groups, num_groups = agreement(by_group[first], by_group[name], num_blocks=num_blocks)
        cells = [coefficient_text("", *(found or (None, None))) or NOTHING for found in (over_components, over_groups)]
        rows.append((name, cells[0], str(n), cells[1], str(num_groups)))
    return rows


def plasticity_table(table: PlasticityTable) -> Table:
    title = f"Plasticity, mean [{confidence(table)} interval]"
    return make_table(title, ("component", *table.modes), plasticity_rows(table))


def plasticity_context(table: PlasticityTable) -> dict[str, Any]:
    """What the page's section on plasticity shows, figures left out."""
    return {
        "modes": table.modes,
        "plasticity_headings": ["component", *(f"{mode} [{confidence(table)}]" for mode in table.modes)],
        "plasticity": plasticity_rows(table),
        "ranking_lines": ranking_lines(table),
        "bound_lines": bound_lines(table),
        "score_headings": ["score", *_by_plasticity(table)],
        "scores": score_rows(table),
        "agreement_headings": _AGREEMENT_HEADINGS,
        "agreement": agreement_rows(table),
        "agreement_note": _AGREEMENT_NOTE,
    }


def _cost_line(table: PlasticityTable) -> str:
    skipped = f"; {table.skipped_pairs:,} pairs of equal images were left out" if table.skipped_pairs else ""
    return f"measured in {table.seconds:.1f} s{skipped}"


def _where(checked: Sequence[tuple[str, bool]]) -> str:
    """``in ln1 (12 of 12 blocks), ln2 (8 of 12 blocks)``, from (component, whether exceeded) of every block."""
    places = []
    for component in COMPONENTS:
        blocks = [exceeded for name, exceeded in checked if name == component]
        if any(blocks):
            places.append(f"{component} ({sum(blocks)} of {len(blocks)} blocks)")
    return f"in {', '.join(places)}" if places else "in no block"


def _by_plasticity(table: PlasticityTable) -> list[str]:
    """The components, those most plastic in the first mode first."""
    means = table.component_means(table.modes[0]) if table.modes else {}
    return sorted(COMPONENTS, key=lambda component: -means.get(component, 0.0))


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e7 else f"{value:.3g}"
