"""Which documents a mix of sources reads, how often, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Mix = Literal["subsample", "repeat"]


def targets(tokens: Sequence[int], weights: Sequence[float], mix: Mix) -> list[int]:
    """How many tokens each source gives so that their shares are as the weights.

    With ``tokens`` tᵢ and weights wᵢ (which need not add up to 1), source i gives wᵢ·T / Σw tokens, where T
    is

    - ``subsample``: the most that no source has to be repeated for, min tᵢ·Σw / wᵢ;
    - ``repeat``: the least that no token is left out of, max tᵢ·Σw / wᵢ.
    """
    rounds = [count / weight for count, weight in zip(tokens, weights, strict=True)]
    scale = min(rounds) if mix == "subsample" else max(rounds)
    return [round(scale * weight) for weight in weights]


def choose(lengths: NDArray[np.integer], target: int, seed: int) -> NDArray[np.integer]:
    """Indices of documents with ``target`` tokens in total: whole passes, then a random rest.

    The total is within half a document of the target (but at least one document is chosen).
    """
    passes, rest = divmod(target, int(lengths.sum(dtype=np.int64)))
    order = scatter(len(lengths), seed)
    reached = np.concatenate([[0], np.cumsum(lengths[order], dtype=np.int64)])
    count = int(np.abs(reached - rest).argmin())
    if passes == 0:
        count = max(count, 1)
    return np.concatenate([np.tile(np.arange(len(lengths)), passes), np.sort(order[:count])])


def scatter(count: int, seed: int) -> NDArray[np.int64]:
    """A permutation of ``range(count)``, the same on every machine and in every version of NumPy.

    Sorted by SplitMix64 (Steele, Lea and Flood 2014) of the position; NumPy's own generators do not promise
    the same stream for ever.
    """
    with np.errstate(over="ignore"):
        keys = np.arange(1, count + 1, dtype=np.uint64)  # in place: this is where memory peaks
        keys += np.uint64(seed) * np.uint64(0xD1342543DE82EF95)
        keys *= np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(30)
        keys *= np.uint64(0xBF58476D1CE4E5B9)
        keys ^= keys >> np.uint64(27)
        keys *= np.uint64(0x94D049BB133111EB)
        keys ^= keys >> np.uint64(31)
    return np.argsort(keys, kind="stable")
