"""What the tables are made of: a record's figures, and numbers as text."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

Record = dict[str, Any]
Records = dict[str, Record]
NOTHING = "–"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figures(record: Record) -> dict[str, Record]:
    """By name; a lone figure stands at the top of its record."""
    return {figure["name"]: figure for figure in record.get("results", [record])}


def number(value: float | None, digits: int | None = None) -> str:
    """With ``digits`` behind the point; by default three in all, noughts at the end left out."""
    if value is None:
        return NOTHING
    if digits is not None:
        text = f"{value:,.{digits}f}"
    elif abs(value) < 1:
        text = f"{value:.3g}"
    else:
        text = f"{value:,.{max(0, 3 - len(f'{abs(value):.0f}'))}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", "−")


def times(ratio: float | None) -> str:
    return NOTHING if ratio is None else f"{number(ratio)} ×"


def prose(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def interval(values: Sequence[float] | None, digits: int = 2) -> str:
    if values is None:
        return NOTHING
    mean, low, high = (number(value, digits) for value in values)
    return f"{mean} [{low}, {high}]"


def with_sd(mean: float, sd: float | None) -> str:
    return number(mean, 1) + (f" ± {number(sd, 1)}" if sd is not None else "")


def first(value: float | Sequence[float] | None) -> float | None:
    return value[0] if isinstance(value, list) else value  # a mean, or a mean with its interval


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes and rest else f"{minutes} min" if minutes else f"{number(seconds)} s"


def origin(record: Record) -> str:
    """Where a record comes from; figures of other commands or days say so themselves."""
    parts = [f"`{record['command']}`", record["machine"], record["date"]]
    parts += [record[key] for key in ("source", "note") if key in record and not (key == "note" and "ours" in record)]
    return f"[`{record['name']}.json`](results/{record['name']}.json): {'; '.join(parts)}"


def generic(record: Record) -> str:
    rows = [
        [f["name"], number(f["ours"]), number(f["theirs"]), f["unit"], times(f["ratio"])]
        for f in figures(record).values()
    ]
    return table(["what", "ours", "theirs", "unit", "ratio"], rows)
