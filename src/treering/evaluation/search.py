"""How a study looks for a learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.console import Console

from treering.errors import TreeringError
from treering.training.divergence import Divergence


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


def best_rate(what: str, values: Sequence[float], bits: Callable[[float], float], console: Console) -> float:
    """The learning rate with which ``what`` reaches the fewest bits, of `rates`; one that diverges counts as infinite.

    Raises:
        TreeringError: all diverged.
    """
    reached: dict[float, float] = {}
    for rate in rates(values, reached):
        try:
            reached[rate] = bits(rate)
        except Divergence as error:
            console.print(f"  {str(error).partition('. ')[0]}: it counts as infinitely bad", markup=False)
            reached[rate] = math.inf
    if math.isinf(min(reached.values())):
        raise TreeringError(f"Whatever rate was tried for {what}, it diverged. Give lower rates.")
    best = min(reached, key=reached.__getitem__)
    told = ", ".join(f"{rate:g}: {found:.3f}" for rate, found in reached.items())
    console.print(f"  {what}: rate {best:g} of {told}", highlight=False)
    return best
