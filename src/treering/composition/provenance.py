"""Where an expert comes from: what its directory or repository tells, for its record in a composition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from treering.composition.schema import Training, check
from treering.errors import TreeringError
from treering.location import file_of, name_of
from treering.publishing.card import front_matter
from treering.reading import inside, read_json

MOST_LICENCE = 200
"""Characters of a licence's name."""


def provenance(place: str) -> dict[str, Any]:
    """What is known of the expert in ``place`` (a directory, or a name on the hub); None where nothing is.

    Raises:
        TreeringError: its training.json or its model card cannot be read, or is a link to somewhere else.
    """
    training = _training(place)
    data = training.get("origin", {}).pop("data", None) if training else None
    return {
        "origin": name_of(place),
        "licence": _licence(place),
        "data": data,
        "training": training,
    }


def _training(place: str) -> dict[str, Any] | None:
    """What training wrote beside the expert: what it was made from and how."""
    path = _file(place, "training.json")
    if path is None:
        return None
    training = read_json(path)
    check(Training, training, str(path))
    return dict(training)


def _licence(place: str) -> str | None:
    """What the model card's front matter names as its licence."""
    path = _file(place, "README.md")
    if path is None:
        return None
    named = front_matter(path).get("license")
    names = named if isinstance(named, list) else [] if named is None else [named]
    if not all(isinstance(name, str) and len(name) <= MOST_LICENCE for name in names):
        raise TreeringError(f"The model card {path} names a licence that is no name. Mend its front matter.")
    return ", ".join(names) or None


def _file(place: str, name: str) -> Path | None:
    """A file of the expert, if it has one; what it tells is published, so it may be no link to some other file."""
    path = file_of(place, name)
    if path is not None and path.is_symlink() and not _is_cached(path):
        return inside(path.parent, name)
    return path


def _is_cached(path: Path) -> bool:
    """Whether a link is one of the hub's cache, whose snapshots are made of links to ``blobs``."""
    snapshot = path.parent.resolve()
    return snapshot.parent.name == "snapshots" and path.resolve().parent == snapshot.parent.parent / "blobs"
