"""The report for other programs and other pages: JSON, Markdown, CSV and Parquet."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unfreeze.evidence.power import settling
from unfreeze.evidence.verdict import verdict
from unfreeze.records import Evidence, to_dict
from unfreeze.report.answer import (
    TRIAL_HEADINGS,
    WORTH_HEADINGS,
    WORTH_TITLE,
    best_trials,
    correlation_row,
    load_lines,
    recommendation_rows,
    seal_line,
    trial_row,
    worth_row,
)
from unfreeze.report.front import FRONT_HEADINGS, front_rows
from unfreeze.report.plasticity import bound_lines, plasticity_rows, ranking_lines
from unfreeze.report.rows import seen_rows
from unfreeze.report.settings import redact


def evidence_json(evidence: Mapping[str, Evidence]) -> str:
    """Sweep → all its evidence, with its sentences; what is infinite is null, passwords in addresses are left out."""
    whole = {name: {**to_dict(found), "verdict": verdict(found.worths)} for name, found in evidence.items()}
    return json.dumps(_plain(whole), indent=1, allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, str):
        return redact(str(value))
    return None if isinstance(value, float) and not math.isfinite(value) else value


def trials_csv(evidence: Iterable[Evidence]) -> str:
    """What the statistics saw, see `seen_rows`."""
    names, rows = seen_rows(evidence)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def trials_parquet(evidence: Iterable[Evidence]) -> bytes:
    """The same rows with their types."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names, rows = seen_rows(evidence)
    stream = io.BytesIO()
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), stream)
    return stream.getvalue()


def markdown_report(evidence: Evidence) -> str:
    """The report in Markdown, for an issue or a notebook: the words and digits of the terminal."""
    recommendation, table = recommendation_rows(evidence), evidence.plasticity
    parts = [
        f"# {evidence.sweep}: unfreeze {recommendation[0][1]}",
        _grid(("", ""), recommendation[1:]) if recommendation[1:] else "",
        seal_line(evidence),
        "## Does plasticity predict accuracy here?",
        verdict(evidence.worths),
        settling(evidence.worths),
        f"### {WORTH_TITLE}",
        _grid(WORTH_HEADINGS, [worth_row(worth) for worth in evidence.worths]),
        "## Plasticity of each component",
        _grid(("component", *table.modes), plasticity_rows(table)),
        "\n".join(f"- {line}" for line in [*ranking_lines(table), *bound_lines(table)]),
        "## Best trial per selection",
        _grid(TRIAL_HEADINGS, [trial_row(trial) for trial in best_trials(evidence)]),
    ]
    if front := front_rows(evidence):
        parts += ["## Accuracy against cost", _grid(FRONT_HEADINGS, front)]
    correlations = [correlation_row(correlation) for correlation in evidence.correlations]
    parts += ["## Rank correlations, as description", _grid(("over", "mode", "n", "Spearman", "Kendall"), correlations)]
    if evidence.final is not None:
        parts += ["## Load the exported model", f"```python\n{load_lines(evidence)}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _grid(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
