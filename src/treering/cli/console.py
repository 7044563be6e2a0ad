"""Where commands print: results to standard output, everything else to standard error."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from treering.reading import printable, visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast
    from transformers.generation.streamers import BaseStreamer

WIDE = 160
"""Columns of a table that goes to a file or a pipe, where there is no terminal to ask."""


def results() -> Console:
    """For what a command was asked for; only the first of several processes speaks."""
    return Console(quiet=not _speaks(), width=None if sys.stdout.isatty() else WIDE)


def progress() -> Console:
    """For what happens meanwhile; also silences the progress bars that transformers draws of its own."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    width = None if sys.stderr.isatty() else WIDE
    return Console(stderr=True, quiet=not _speaks(), soft_wrap=True, highlight=False, width=width)


def plain(text: str) -> Text:
    """One line or cell of what a stranger may have written: no markup, no control characters."""
    return Text(printable(text, max(len(text), 1)))


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


def _speaks() -> bool:
    return os.environ.get("RANK", "0") == "0"
