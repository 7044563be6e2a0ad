from __future__ import annotations

import math

import pytest

from treering.evaluation.search import rates


def look(values, reached):
    """All rates that a search looks at where a rate reaches so much."""
    tried: dict[float, float] = {}
    for rate in rates(values, tried):
        tried[rate] = reached(rate)
    return list(tried)


@pytest.mark.parametrize(
    ("best", "looked"),
    [
        (3e-3, [1e-3, 3e-3, 9e-3]),
        (1e-1, [1e-3, 3e-3, 9e-3, 2.7e-2, 8.1e-2, 2.43e-1]),
        (1e-4, [1e-3, 3e-3, 9e-3, 3.33e-4, 1.11e-4, 3.7e-5]),
    ],
)
def test_it_goes_on_until_the_best_is_no_end(best, looked):
    assert look([1e-3, 3e-3, 9e-3], lambda rate: abs(math.log(rate / best))) == pytest.approx(looked)


def test_one_rate_is_taken_as_it_is_and_what_only_diverges_ends_the_search():
    assert look([1e-3], lambda rate: 1.0) == [1e-3]
    assert look([1e-3, 3e-3], lambda rate: math.inf) == [1e-3, 3e-3]
