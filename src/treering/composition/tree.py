"""A composition is a tree: experts are paths, and paths with a common beginning share it.

::

    substrate ── trunk ──┬────────────── norm, head        the base
                         ├── two blocks ─ norm, head        ru
                         └── trunk ──┬─── one block ─ …     medicine
                                     └─── one block ─ …     law

An expert stands on something: on its own embedding, on one that it shares (a *substrate*), or on a *trunk*, a run of
consecutive blocks that the same two or more experts use, which itself stands on a substrate or a trunk. What is shared
exists once: in memory, on disk, in the cache, and in time, since a trunk reads a text once for all. What an expert has
alone (its last blocks, and norm and head unless others have the very same) is a model of its family that begins where
the trunk ends.

All this follows from the names of the experts' parts (``treering.composition.parts``), in whatever order they came.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

KEY = 16
"""Hex digits of the fingerprint or name that a shared part is called by."""

Record = Mapping[str, Any]


class Trunk(NamedTuple):
    """Blocks ``first`` to ``last`` (exclusive, from 0) of some experts.

    Attributes:
        below: the trunk that it stands on; None if it stands on the embedding.
        experts: those that pass through it, by name.
    """

    key: str
    embedding: str
    below: str | None
    first: int
    last: int
    experts: tuple[str, ...]


class Place(NamedTuple):
    """Where an expert stands, and what it has alone.

    Attributes:
        embedding: the key of the shared one that its path begins with; None if it has its own.
        trunks: the keys of those that it passes through, from below.
        first: its first block of its own.
        norm: the key of its final norm, if others on a trunk have the same; else None.
        head: the key of its head, if others have the same; else None.
        tied: its head is the shared embedding.
        own: whether it has anything alone.
    """

    embedding: str | None
    trunks: tuple[str, ...] = ()
    first: int = 0
    norm: str | None = None
    head: str | None = None
    tied: bool = False
    own: bool = True

    @property
    def alone(self) -> tuple[int, bool, bool, bool]:
        """What of its path an expert has alone: its blocks from which on, its embedding, its norm, its head."""
        return self.first, self.embedding is None, self.norm is None, not (self.head or self.tied)


class Tree(NamedTuple):
    """The trunks by key, each after the one below it, and the experts' places by name, in their order."""

    trunks: dict[str, Trunk]
    places: dict[str, Place]


def tree(records: Sequence[Record]) -> Tree:
    """The tree of a composition's experts, from their records' ``name``, ``substrate`` and ``path``.

    An expert without a path, of a family whose parts are not known, shares nothing but a substrate.
    """
    paths = {record["name"]: record["path"] for record in records if record.get("path")}
    embeddings = Counter(path["embedding"] for path in paths.values())
    heads = Counter(path["head"] for path in paths.values())
    groups: dict[str, list[str]] = {}
    places: dict[str, Place] = {}
    for record in records:
        name, path = record["name"], paths.get(record["name"])
        shared = record["substrate"] or (path["embedding"] if path and embeddings[path["embedding"]] > 1 else None)
        embedding = shared[:KEY] if shared else None
        places[name] = Place(embedding)
        if path is None:
            continue
        tied = embedding is not None and path["head"] == path["embedding"]
        places[name] = Place(
            embedding,
            head=path["head"][:KEY] if heads[path["head"]] > 1 and not tied else None,
            tied=tied,
        )
        if embedding:
            groups.setdefault(embedding, []).append(name)
    trunks: dict[str, Trunk] = {}

    def rise(names: Sequence[str], depth: int, embedding: str, below: str | None) -> None:
        """Find the trunks of experts whose first ``depth`` blocks are the same."""
        if len(names) < 2:
            return
        stacks = [paths[name]["blocks"] for name in names]
        last = depth
        while all(len(stack) > last and stack[last] == stacks[0][last] for stack in stacks):
            last += 1
        if last > depth:
            told = json.dumps([embedding, depth, stacks[0][:last]]).encode()
            key = hashlib.sha256(told).hexdigest()[:KEY]
            trunks[key] = Trunk(key, embedding, below, depth, last, tuple(names))
            for name in names:
                places[name] = places[name]._replace(trunks=(*places[name].trunks, key), first=last)
            below = key
        branches: dict[str | None, list[str]] = {}
        for name, stack in zip(names, stacks, strict=True):
            branches.setdefault(stack[last] if len(stack) > last else None, []).append(name)
        branches.pop(None, None)
        for branch in branches.values():
            rise(branch, last, embedding, below)

    for embedding, names in groups.items():
        rise(names, 0, embedding, None)
    norms = Counter(path["norm"] for name, path in paths.items() if places[name].trunks)
    for name, path in paths.items():
        place = places[name]
        norm = path["norm"][:KEY] if place.trunks and norms[path["norm"]] > 1 else None
        bare = bool(norm and (place.head or place.tied) and place.first == len(path["blocks"]))
        places[name] = place._replace(norm=norm, own=not bare)
    return Tree(trunks, places)
