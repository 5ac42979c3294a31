"""Text of ours as Markdown that says the same."""

from collections.abc import Sequence


def plain(text: str) -> str:
    """As it stands: what Markdown would read as markup is escaped."""
    for char in "\\`*_<[":
        text = text.replace(char, f"\\{char}")
    return text


def table(rows: Sequence[tuple[str, str]]) -> str:
    """(what, value) as a table without headings."""
    cells = [[plain(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in cells)])


def code(text: str, language: str) -> str:
    return f"```{language}\n{text}\n```"
