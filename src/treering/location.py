"""Names that may be a directory here or a repository on the Hugging Face hub."""

from __future__ import annotations

import os
from pathlib import Path

from treering.errors import TreeringError


def locate(name_or_path: str | os.PathLike[str], what: str) -> str:
    """The path or hub name to hand to transformers; ``hub:owner/name`` means the hub, whatever lies here.

    A mistyped directory is told at once, instead of after the hub has been asked for it.

    Raises:
        TreeringError: nothing is there, and it cannot be a hub name.
    """
    name = os.fspath(name_or_path)
    if name.startswith("hub:"):
        return name.removeprefix("hub:")
    path = Path(name)
    if path.is_dir():
        return name
    if path.is_file():
        raise TreeringError(f"{name} is a file; give the directory of the {what}.")
    looks_remote = name.count("/") == 1 and not path.parent.exists() and not name.startswith((".", "~", "/"))
    if looks_remote:
        return name
    raise TreeringError(f"There is no directory {name} with a {what}. For one on the Hugging Face hub, write hub:NAME.")
