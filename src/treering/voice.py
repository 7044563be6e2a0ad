"""Whether this process tells people what happens while they wait: the first of several does, unless it was hushed."""

from __future__ import annotations

import os
import sys

_hushed = False


def hush(quiet: bool) -> None:
    """Let `tells_progress` be false from now on, or as it was."""
    global _hushed
    _hushed = quiet


def speaks() -> bool:
    """Whether this is the one of several processes that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def tells_progress() -> bool:
    """Whether this process says what happens meanwhile."""
    return speaks() and not _hushed


def shows_bars() -> bool:
    """Whether bars are drawn, which only a terminal can take back."""
    return tells_progress() and sys.stderr.isatty()
