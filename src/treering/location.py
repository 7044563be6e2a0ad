"""Names that may be a directory here or a repository on the Hugging Face hub."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from rich.console import Console

from treering.errors import TreeringError
from treering.output import recover
from treering.reading import inside, printable
from treering.voice import tells_progress

HUB = "hub:"
"""Before the name of a repository."""


def locate(name_or_path: str | os.PathLike[str]) -> str:
    """The path or hub name to hand to transformers; ``hub:owner/name`` alone means the hub, whatever lies here.

    So a mistyped directory is told at once, instead of after the hub has been asked for it. One that a process was
    replacing when it died is put back first.

    Raises:
        TreeringError: there is no such directory.
    """
    name = os.fspath(name_or_path)
    if name.startswith(HUB):
        _tell_of_the_hub(repository := name.removeprefix(HUB))
        return repository
    path = Path(name)
    recover(path)
    if path.is_dir():
        return name
    if path.is_file():
        raise TreeringError(f"{printable(name)} is a file; give the directory that it lies in.")
    remote = f"{HUB}{name}" if name.count("/") == 1 and not name.startswith((".", "~", "/")) else f"{HUB}NAME"
    raise TreeringError(
        f"There is no directory {printable(name)}. What lies on the Hugging Face hub is written {printable(remote)}."
    )


@cache
def _tell_of_the_hub(repository: str) -> None:
    """Say, once for each repository, whom one waits for."""
    console = Console(stderr=True, quiet=not tells_progress(), soft_wrap=True, highlight=False)
    console.print(f"asking the hub for {printable(repository)}", markup=False)


def name_of(place: str) -> str:
    """What people call a model: the name of its directory or file, without where that lies, or its name on the hub."""
    return Path(place).resolve().name if Path(place).exists() else place


def file_of(place: str, name: str) -> Path | None:
    """The file ``name`` of a directory or of a repository on the hub, from where it is fetched; None if it has none.

    Raises:
        OSError: the hub cannot be reached, or has no such repository.
    """
    if Path(place).is_dir():
        path = Path(place, name)
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(place, name))
    except EntryNotFoundError:
        return None


def own_file_of(place: str, name: str) -> Path | None:
    """As `file_of`, but of a directory no link is followed.

    Raises:
        TreeringError: the file of a directory is a link, or no ordinary file.
        OSError: see `file_of`.
    """
    if Path(place).is_dir():
        path = inside(place, name)
        return path if path.is_file() else None
    return file_of(place, name)
