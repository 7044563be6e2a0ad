"""Files that somebody else wrote: nothing is followed out of their directory, and nothing costs more than it is.

Whatever is read from a directory comes from a stranger: experts, compositions, corpora and checkpoints are handed on.
"""

from __future__ import annotations

import json
import os
import stat
import unicodedata
from pathlib import Path, PurePosixPath
from typing import Any

from treering.errors import TreeringError

MOST_JSON = 256 * 2**20
"""Bytes of a JSON file that is read; the largest honest one is a tokenizer's."""


def inside(directory: str | os.PathLike[str], name: str) -> Path:
    """The path of the regular file ``name`` in ``directory``, whether or not it is there.

    Raises:
        TreeringError: the name leads out of the directory or can be no file's, or the file or a directory on the way is
            a link or a device.
    """
    parts = PurePosixPath(name).parts
    if not parts or "\0" in name or PurePosixPath(name).is_absolute() or ".." in parts or "\\" in name:
        raise TreeringError(
            f"{directory} names a file {printable(name)} that is not inside it. It is not to be trusted."
        )
    path = Path(directory)
    for number, part in enumerate(parts, 1):
        path /= part
        mode = _mode(path)
        if mode is None:
            break
        if not (stat.S_ISREG(mode) if number == len(parts) else stat.S_ISDIR(mode)):
            kind = "a link" if stat.S_ISLNK(mode) else "no ordinary file"
            raise TreeringError(f"{path} is {kind}, which Treering does not follow. Put the file itself there.")
    whole = Path(directory, *parts)
    _mode(whole)
    return whole


def _mode(path: Path) -> int | None:
    """What stands at a path, links not followed; None if nothing does."""
    try:
        return os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):  # too long, or no Unicode
        raise TreeringError(f"{printable(os.fspath(path))} is a name that no file can have.") from None


def read_json(path: Path, most: int = MOST_JSON) -> Any:
    """The content of a JSON file of at most ``most`` bytes.

    Raises:
        TreeringError: it is not there, no ordinary file, larger, not JSON in UTF-8, or nested too deeply.
    """
    if not path.is_file():  # to read from a pipe would be to wait for ever
        raise TreeringError(f"{path} is missing. Copy it again from where it came from.")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise TreeringError(f"{path} is larger than {most >> 20:,} MiB, which no honest file of its kind is.")
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise TreeringError(
            f"{path} is damaged: {printable(str(error))}. Copy it again from where it came from."
        ) from None


_SIGNS = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
_SIGNS |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD) | {0x7F: 0x2421}


def visible(text: str) -> str:
    """A text of several lines with its control characters, which a terminal would obey, as visible signs.

    All that writing needs stays as it is, joiners and marks of direction among it; names are for `printable`.
    """
    return text.translate(_SIGNS)


def printable(text: str, most: int = 200) -> str:
    """``text`` as a terminal may show it: control, bidi and other invisible characters as escapes, cut to ``most``.

    Such characters can move the cursor, colour what follows, or let a name read as another.
    """
    shown = "".join(
        c if c.isprintable() or unicodedata.category(c) == "Zs" else c.encode("unicode_escape").decode("ascii")
        for c in text[:most]
    )
    return shown if len(text) <= most else shown + "…"
