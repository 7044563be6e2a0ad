"""Small facts that a run cannot do without: written twice, each with its digest, so that damage to one is mended."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from treering.errors import TreeringError
from treering.output import write_file
from treering.reading import read_json


def write_record(path: Path, value: Any) -> None:
    """Let ``path``, and its copy beside it, hold a JSON value."""
    content = json.dumps({"sha256": _digest(value), "value": value}, indent=2, sort_keys=True)
    for place in (_copy(path), path):
        write_file(place, content)


def read_record(path: Path, console: Console) -> Any:
    """The value that `write_record` left; None if there is none, or neither it nor its copy is intact.

    Where one of both is not what was written, that is told, and mended.
    """
    values = {place: _intact(place) for place in (path, _copy(path))}
    value = next((value for value in values.values() if value is not None), None)
    if value is not None and None in values.values():
        (damaged,) = (place for place, found in values.items() if found is None)
        console.print(f"  {damaged} was damaged or missing; it was made again from its copy", highlight=False)
        write_record(path, value)
    return value


def _copy(path: Path) -> Path:
    return path.with_name(f"{path.stem}.copy{path.suffix}")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _intact(path: Path) -> Any:
    try:
        record = read_json(path)
        return record["value"] if record["sha256"] == _digest(record["value"]) else None
    except (TreeringError, OSError, KeyError, TypeError):
        return None
