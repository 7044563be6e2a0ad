"""What a safetensors file says of itself, before any of its numbers is read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from treering.errors import TreeringError
from treering.reading import printable

MOST_HEADER = 32 * 2**20
"""Bytes of a safetensors file's header; those of the largest models have one."""


def header(path: Path) -> dict[str, dict[str, Any]]:
    """Shape, precision and place of each tensor in a safetensors file, which together are the file, without gaps.

    Raises:
        TreeringError: the file is not there, or damaged.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError("it is missing")
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(path.stat().st_size, MOST_HEADER):
                raise ValueError("its header is longer than can be")
            with safe_open(path, framework="pt"):  # compares shapes, precisions and places with the file's size
                tensors = json.loads(file.read(length))
        tensors.pop("__metadata__", None)
        if strange := [name for name in tensors if not name.isprintable() or len(tensors[name]["shape"]) > 8]:
            raise ValueError(f"it has a tensor {printable(strange[0])}")
    except (OSError, ValueError, SafetensorError) as error:
        raise TreeringError(
            f"{path} is missing, damaged or cut short ({printable(str(error))}). Copy or make it again."
        ) from None
    return tensors


def parameter_count(path: Path) -> int:
    """How many numbers a safetensors file holds, from its header alone.

    Raises:
        TreeringError: the file is not there, or damaged.
    """
    return sum(math.prod(tensor["shape"]) for tensor in header(path).values())
