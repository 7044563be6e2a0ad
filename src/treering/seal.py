"""The record of a directory's files, sizes and digests: what it says is what was written, or it is damaged."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from treering.errors import TreeringError
from treering.output import write_file
from treering.reading import inside, read_json

SEAL = "seal.json"


def seal(directory: Path) -> None:
    """Write the record of all files below ``directory``, which are complete, into it."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != SEAL)
    record = {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in files
    }
    write_file(directory / SEAL, json.dumps(record, indent=1))


def damage(directory: Path) -> str | None:
    """What is wrong with the files of a sealed directory, in words; None if they are what was written."""
    try:
        record = read_json(inside(directory, SEAL))
        for name, known in record.items():
            path = inside(directory, name)
            if not path.is_file():
                return f"{name} is missing"
            if (size := path.stat().st_size) != known["bytes"]:
                return f"{name} has {size:,} bytes instead of {known['bytes']:,}"
            if file_digest(path) != known["sha256"]:
                return f"{name} is not what was written (its SHA-256 differs)"
    except TreeringError as error:
        return str(error)
    except (AttributeError, TypeError, KeyError, ValueError):
        return f"{SEAL} is damaged"
    return None


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
