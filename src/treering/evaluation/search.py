"""How a study looks for a learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence


def rates(values: Sequence[float], tried: Mapping[float, float]) -> Iterator[float]:
    """The rates in order, and others beyond their ends, at the same distance, as long as the best one stands there.

    Args:
        tried: what those that came so far have reached, of which less is better; the caller notes it there.
    """
    yield from values
    if len(tried) < 2:
        return
    low, next_to_low, *_ = sorted(tried)
    step = next_to_low / low
    while (best := min(tried, key=tried.__getitem__)) in (min(tried), max(tried)) and math.isfinite(tried[best]):
        yield float(f"{best * step if best == max(tried) else best / step:.3g}")
