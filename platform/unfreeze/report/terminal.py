"""Tables and lines for a terminal: plain text, 100 columns, no colour codes."""

import io
import shutil
import sys
import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

_WIDTH = 100
_NARROWEST = 40  # below it, words no longer fit beside one another
NOTHING = "–"


def terminal_width() -> int:
    """Columns of the terminal that standard output is; 100 for a pipe or a file."""
    if sys.stdout is None or not sys.stdout.isatty():
        return _WIDTH
    return max(shutil.get_terminal_size((_WIDTH, 24)).columns, _NARROWEST)


def make_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=any(headings), expand=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        # Text of the user's may hold rich's own markup: [bold].
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    return table


def print_lines(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        console.print(textwrap.fill(line, _WIDTH, subsequent_indent="  ", break_on_hyphens=False), markup=False)


def make_console() -> Console:
    # In a notebook rich writes to the page and not to its file, unless told.
    return Console(
        file=io.StringIO(),
        width=_WIDTH,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
        highlight=False,
    )


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"
