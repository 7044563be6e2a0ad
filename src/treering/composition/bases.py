"""Branches fit the model that they were grown on, to the bit; what growth notes of it is compared here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from transformers import PreTrainedConfig

from treering import backbone
from treering.composition.configuration import expert_config
from treering.errors import TreeringError
from treering.reading import printable

Record = Mapping[str, Any]

BRANCH = "branch.json"
"""In a directory that holds a branch without its trunk: the names of all parts of the whole."""


def trunk_name(blocks: Iterable[str]) -> str:
    """The name of a run of blocks: the SHA-256 (hex) of their names."""
    return hashlib.sha256("".join(blocks).encode()).hexdigest()


def require_one_base(records: Sequence[Record]) -> None:
    """Refuse branches of different bases, and a base that is not to the bit the one that a branch was grown on.

    They could be joined at their output, but would share nothing: N branches would cost N models.

    Raises:
        TreeringError: names both trunks and the first block in which they differ, and tells the way out.
    """
    for one, other in combinations((record for record in records if record.get("path")), 2):
        if (_grown_on(one) or _grown_on(other)) and _are_akin(one, other):
            # A base is compared as far as it goes: of a branch of its branch, the trunk is longer.
            shared = min(_grown_on(record) or len(record["path"]["blocks"]) for record in (one, other))
            _require_same_trunk(one, other, shared)


def without_trunk(place: str, config: PreTrainedConfig) -> str:
    """What to say of a branch in ``place`` that lacks what it was grown on: which base that is, by name and hash."""
    trunk = backbone.grown_on(config)
    base = f"{printable(trunk.base)}, whose lowest {trunk.blocks} blocks are {trunk.trunk}" if trunk else "its base"
    return (
        f"{printable(place)} is a branch without its trunk: it needs the model that it was grown on, {base}. Give that "
        f"model beside it: treering compose base=MODEL NAME={printable(place)} -o OUT"
    )


def _grown_on(record: Record) -> int:
    """The blocks of the model that a branch was grown on; 0 for what is no branch."""
    trunk = backbone.grown_on(expert_config(record))
    return trunk.blocks if trunk else 0


def _are_akin(one: Record, other: Record) -> bool:
    """Whether two experts seem to have one origin: models of one shape that read one substrate, or none at all."""
    shapes = [
        (config.model_type, config.hidden_size, config.vocab_size, record["substrate"])
        for record, config in ((record, expert_config(record)) for record in (one, other))
    ]
    return shapes[0] == shapes[1]


def _require_same_trunk(one: Record, other: Record, blocks: int) -> None:
    paths = one["path"], other["path"]
    stacks = [path["blocks"][:blocks] for path in paths]
    first = next((n for n, pair in enumerate(zip(*stacks, strict=False)) if pair[0] != pair[1]), min(map(len, stacks)))
    same_embedding = paths[0]["embedding"] == paths[1]["embedding"]
    if one["substrate"] and first == 0 and not (_grown_on(one) and _grown_on(other)):
        return  # specialists on one substrate have no block in common
    if same_embedding and first == blocks:
        return
    where = f"block {first + 1} of {blocks}" if same_embedding else "the embedding"
    holders = "\n".join(
        f"  {record['name']}: {trunk_name(stack)}{_origin(record)}"
        for record, stack in zip((one, other), stacks, strict=True)
    )
    raise TreeringError(
        f"{one['name']} and {other['name']} do not stand on one trunk; the first difference is in {where}:\n{holders}\n"
        "A branch fits the model that it was grown on, to the bit. Give that one as the base, or grow the branch again "
        "on this one; or join them at their output alone, at the cost of a whole model each, by --across-substrates "
        "(across_substrates=True)."
    )


def _origin(record: Record) -> str:
    trunk = backbone.grown_on(expert_config(record))
    return f" (grown on {printable(trunk.base)})" if trunk else ""
