"""Standard output and error as they are found: closed, on a full disk, not UTF-8, read by someone who leaves."""

import codecs
import contextlib
import io
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from unfreeze.errors import StorageError

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")

# As the shell reports a command whose reader has gone: 128 + SIGPIPE.
_READER_GONE = 141
_PLAIN = {
    "─": "-",
    "━": "-",
    "│": "|",
    "┃": "|",
    "–": "-",
    "−": "-",
    "×": "x",
    "·": "-",
    "…": "...",
    "→": "->",
    "±": "+-",
}


@contextlib.contextmanager
def sound_streams() -> Iterator[None]:
    """For the whole of a command: characters that a terminal does not have are replaced, and what cannot be written
    neither ends the command nor changes its exit status.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # the next file to be opened would take its place, and hold what is printed
            os.open(os.devnull, os.O_RDWR)
    codecs.register_error("unfreeze.plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="unfreeze.plain")
    logging.raiseExceptions = False  # a log line that cannot be written is no traceback
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                try:
                    stream.flush()
                except OSError:
                    _abandon(stream)


def say(line: str) -> None:
    """A line of progress to standard error, or nowhere: the work does not hang on its log.

    In a notebook to standard output, since the other is shown there as an error is.
    """
    stream = sys.stdout if in_notebook() else sys.stderr
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: closed
            print(line, file=stream, flush=True)


@contextlib.contextmanager
def stage(what: str) -> Iterator[None]:
    """Say what begins, and when it is done in how many seconds."""
    say(f"{what} …")
    began = time.monotonic()
    yield
    say(f"{what}: {time.monotonic() - began:.1f} s")


def show(result: str, *, kept_at: str | None = None) -> None:
    """A result to standard output. ``kept_at``: where else it lies; then an output that fails costs a warning.

    Ends the process quietly when the reader has gone and there is no such place.

    Raises:
        StorageError: the output cannot be written, and the result is nowhere else.
    """
    if sys.stdout is None:
        return
    try:
        print(result, flush=True)
    except OSError as error:
        _abandon(sys.stdout)
        if kept_at is None and isinstance(error, BrokenPipeError):
            sys.exit(_READER_GONE)
        if kept_at is None:
            raise StorageError(f"standard output cannot be written: {error.strerror}; send it elsewhere") from error
        if not isinstance(error, BrokenPipeError):
            say(f"standard output cannot be written: {error.strerror}; the result is in {kept_at}")


def show_bytes(result: bytes) -> None:
    """A binary result to standard output.

    Raises:
        StorageError: standard output is a terminal, or cannot be written.
    """
    if sys.stdout is None or sys.stdout.isatty():
        raise StorageError("the result is binary and standard output a terminal: add > FILE to the command")
    try:
        sys.stdout.buffer.write(result)
        sys.stdout.flush()
    except OSError as error:
        _abandon(sys.stdout)
        raise StorageError(f"standard output cannot be written: {error.strerror}; send it elsewhere") from error


def in_notebook() -> bool:
    """Whether a page shows what is printed, and not a terminal or a file."""
    return "ipykernel" in sys.modules


def watch(items: Iterable[T], *, total: int, what: str) -> Iterable[T]:
    """Hand the items through; in a notebook a bar says how far it is."""
    return _watched(items, progress_bar(total=total, what=what)) if in_notebook() else items


def _watched(items: Iterable[T], bar: "tqdm[T]") -> Iterator[T]:
    try:
        for item in items:
            bar.update()
            yield item
    except GeneratorExit:  # whoever takes them has enough
        complete(bar)
        raise
    finally:
        bar.close()


def progress_bar(*, total: int, what: str) -> "tqdm[Any]":
    """A widget where the notebook has them, else a line of text, on standard output to keep its place in the page."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that ipywidgets is not there
        from tqdm.auto import tqdm

        return tqdm(total=total, desc=what, file=sys.stdout)


def complete(bar: "tqdm[Any]") -> None:
    """All there was to do is done: a bar of which more was announced would turn red."""
    if (count := bar.n) < bar.total:
        bar.reset(total=count)
        bar.update(count)
    bar.close()


def _abandon(stream: TextIO) -> None:
    """What is left in its buffer, and all that follows, goes nowhere: else Python would fail on it at its exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """An error handler of `codecs`: what looks most like the characters that the encoding lacks."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(char, "+" if "─" <= char <= "╿" else "?") for char in text), error.end
