"""Where commands print: results to standard output, everything else to standard error."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from treering.reading import printable, visible
from treering.voice import hush, speaks, tells_progress

if TYPE_CHECKING:
    from rich.table import Table
    from transformers import PreTrainedTokenizerFast
    from transformers.generation.streamers import BaseStreamer

WIDE = 160
"""Columns of a table that goes to a file or a pipe, where there is no terminal to ask."""

_VERBOSITIES = "TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY", "HF_HUB_VERBOSITY"
_BARS = "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"


def talk(quiet: bool, verbose: bool) -> None:
    """Say for all that follows whether progress is told, and what libraries log.

    Libraries read their settings when they are imported, which is later; what a user has set in the environment stays.
    """
    hush(quiet)
    if verbose:
        os.environ.update(dict.fromkeys(_VERBOSITIES, "info"))
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
        logging.captureWarnings(True)
    else:
        for name in _VERBOSITIES:
            os.environ.setdefault(name, "error")
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        for name in _BARS:
            os.environ.setdefault(name, "1")


def results() -> Console:
    """For what a command was asked for; only the first of several processes speaks."""
    return Console(quiet=not speaks(), width=None if sys.stdout.isatty() else WIDE)


def progress() -> Console:
    """For what happens meanwhile."""
    return _to_stderr(quiet=not tells_progress())


def nothing_to_do(output: str | os.PathLike[str]) -> None:
    """Say that a command has been here before: what it would make is there."""
    progress().print(plain(f"{os.fspath(output)}: complete, nothing to do"))


def caution(message: str) -> None:
    """Say what a person has to know of a result; not even ``--quiet`` keeps it back."""
    _to_stderr(quiet=not speaks()).print(Text(f"warning: {printable(message, len(message))}", "yellow"))


def _to_stderr(quiet: bool) -> Console:
    width = None if sys.stderr.isatty() else WIDE
    return Console(stderr=True, quiet=quiet, soft_wrap=True, highlight=False, width=width)


def plain(text: str) -> Text:
    """One line or cell of what a stranger may have written: no markup, no control characters."""
    return Text(printable(text, max(len(text), 1)))


def print_readable(values: object) -> None:
    """Print JSON whose strings are as they are, but for what a terminal would obey, which is escaped."""
    text = json.dumps(values, ensure_ascii=False, indent=2)
    if speaks():
        print("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def print_fitting(console: Console, *tables: Table) -> None:
    """Print the first table that the console is wide enough for, or the last."""
    unbounded = console.options.update(max_width=10_000)
    fits = (table for table in tables if console.measure(table, options=unbounded).maximum <= console.width)
    console.print(next(fits, tables[-1]))


def print_table(console: Console, table: Table) -> None:
    """Print a table, or where the console is too narrow for it, what it says of each row on lines of their own."""
    print_fitting(console, table, transposed(table))


def transposed(table: Table) -> Table:
    """Each row of a table as lines of name and value, with nothing between rows but an empty line."""
    from rich.table import Table

    turned = Table(box=None, show_header=False)
    turned.add_column(no_wrap=True)
    turned.add_column(overflow="fold")
    for row in zip(*(column.cells for column in table.columns), strict=True):
        if turned.row_count:
            turned.add_row()
        for column, cell in zip(table.columns, row, strict=True):
            if cell:
                turned.add_row(str(column.header).replace("\n", " "), cell)
    return turned


def streamer(tokenizer: PreTrainedTokenizerFast) -> BaseStreamer:
    """Prints what a model writes while it writes; on a terminal, none of its control characters is obeyed."""
    from transformers import TextStreamer

    class Shown(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            super().on_finalized_text(shown(text), stream_end)

    return Shown(tokenizer, skip_prompt=True, skip_special_tokens=True)


def shown(text: str) -> str:
    """A model's text as standard output may have it: exactly, unless that is a terminal."""
    return visible(text) if sys.stdout.isatty() else text
