"""Where commands print: results to standard output, everything else to standard error."""

from __future__ import annotations

import os
import sys

from rich.console import Console

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


def _speaks() -> bool:
    return os.environ.get("RANK", "0") == "0"
