"""The report's tables of numbers as files that MLflow shows as tables: the layout of its `log_table`."""

import json
from collections.abc import Sequence

from unfreeze.records import Evidence
from unfreeze.report.answer import WORTH_HEADINGS, correlation_row, worth_row

CORRELATIONS, WORTH = "correlations.json", "worth.json"


def evidence_tables(evidence: Evidence) -> dict[str, bytes]:
    """File → content, in the words and digits of the report."""
    headings = ("over", "mode", "n", "Spearman", "Kendall", "held fixed")
    rows = [(*correlation_row(found), found.held_fixed) for found in evidence.correlations]
    return {
        CORRELATIONS: _table(headings, rows),
        WORTH: _table(WORTH_HEADINGS, [worth_row(found) for found in evidence.worths]),
    }


def shown_as_tables() -> str:
    """The value of MLflow's tag for them; without it they are plain JSON to the UI."""
    return json.dumps([{"path": path, "type": "table"} for path in (CORRELATIONS, WORTH)])


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    return json.dumps({"columns": headings, "data": rows}, ensure_ascii=False).encode()
