"""Who owns which page where several owners have texts of one kind: topics are shared or not, pages never.

A topic is what stands before the last "/" of a page's id, as ``swriter/guide`` of ``swriter/guide/tables``; a page
whose id has none is a topic of its own. All that is decided here follows from ids and sizes alone.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence

Sizes = Mapping[str, Mapping[str, int]]
"""By kind (a language, a domain) and page's id, its bytes."""


def topic_of(page: str) -> str:
    """The topic of a page's id."""
    return page.rpartition("/")[0] or page


def owner_of(sizes: Sizes, members: int, overlap: float) -> dict[str, int]:
    """The owner, from 0, of every page of any kind; a page has the same owner in all kinds in which it stands.

    Pages of shared topics (see `shared_topics`) are dealt one by one, in an order that looks random, so that every
    owner has some of each. Every other topic is one owner's, the largest first to whom has least of its kinds.

    Args:
        overlap: share of the bytes, from 0 to 1, whose topics are shared.
    """
    topics, wholes = _topics(sizes), _shares(sizes)
    shared = shared_topics(sizes, overlap)
    pages = (page for topic in shared for page in sorted(topics[topic], key=_drawn))
    owners = dict(zip(pages, itertools.cycle(range(members))))
    held = [dict.fromkeys(sizes, 0.0) for _ in range(members)]
    for topic in sorted(topics.keys() - set(shared), key=lambda topic: (-sum(wholes[topic].values()), topic)):
        # Of one kind, the lightest; of several, who then has the least sum of squares.
        owner = min(range(members), key=lambda at: sum(held[at][kind] * own for kind, own in wholes[topic].items()))
        for kind, own in wholes[topic].items():
            held[owner][kind] += own
        owners |= dict.fromkeys(topics[topic], owner)
    return owners


def shared_topics(sizes: Sizes, overlap: float) -> list[str]:
    """The topics that are shared: of all, in an order that looks random, the first that come nearest to ``overlap``.

    Those of a smaller overlap are among those of a larger one.
    """
    wholes = _shares(sizes)
    order = sorted(wholes, key=_drawn)
    reached = [0.0, *itertools.accumulate(sum(wholes[topic].values()) for topic in order)]
    count = min(range(len(reached)), key=lambda many: abs(reached[many] - overlap * reached[-1]))
    return order[:count]


def share_of(sizes: Sizes, topics: Sequence[str]) -> float:
    """The share of the bytes, mean over the kinds, that some topics have."""
    wholes = _shares(sizes)
    return sum(sum(wholes[topic].values()) for topic in topics) / len(sizes)


def _topics(sizes: Sizes) -> dict[str, list[str]]:
    """The pages of each topic."""
    found: dict[str, list[str]] = {}
    for page in dict.fromkeys(page for own in sizes.values() for page in own):
        found.setdefault(topic_of(page), []).append(page)
    return found


def _shares(sizes: Sizes) -> dict[str, dict[str, float]]:
    """By topic, what share of each kind's bytes is of it: kinds count alike, however their bytes do."""
    found: dict[str, dict[str, float]] = {}
    for kind, own in sizes.items():
        whole = sum(own.values())
        for page, size in sorted(own.items()):
            shares = found.setdefault(topic_of(page), {})
            shares[kind] = shares.get(kind, 0.0) + size / whole
    return found


def _drawn(name: str) -> bytes:
    """Where a topic or page stands in an order that has nothing to do with what it is about."""
    return hashlib.sha256(f"treering owners\0{name}".encode("utf-8", "surrogatepass")).digest()
