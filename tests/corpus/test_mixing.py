from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treering.corpus.mixing import choose, scatter, targets

sources = st.lists(st.tuples(st.integers(1_000, 10**9), st.integers(1, 100)), min_size=1, max_size=6)


def test_two_sources_by_hand() -> None:
    # 300 and 100 tokens in equal shares: 100 + 100 without repeating, 300 + 300 without leaving out
    assert targets([300, 100], [0.5, 0.5], "subsample") == [100, 100]
    assert targets([300, 100], [1, 1], "repeat") == [300, 300]
    assert targets([300, 100], [0.9, 0.1], "subsample") == [300, 33]
    assert targets([300, 100], [0.6, 0.4], "subsample") == [150, 100]


@given(sources)
def test_targets_against_exact_arithmetic(mix: list[tuple[int, int]]) -> None:
    tokens, weights = zip(*mix, strict=True)
    rounds = [Fraction(t, w) for t, w in mix]
    for rule, scale in (("subsample", min(rounds)), ("repeat", max(rounds))):
        found = targets(tokens, [float(w) for w in weights], rule)
        assert all(abs(n - scale * w) <= Fraction(501, 1000) for n, w in zip(found, weights, strict=True))
    assert all(n <= t for n, t in zip(targets(tokens, weights, "subsample"), tokens, strict=True))
    assert all(n >= t for n, t in zip(targets(tokens, weights, "repeat"), tokens, strict=True))


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.floats(0.05, 5), st.integers(0, 9))
def test_choice_is_within_half_a_document(lengths: list[int], passes: float, seed: int) -> None:
    array = np.array(lengths)
    target = max(1, round(passes * array.sum()))
    chosen = choose(array, target, seed)
    times = np.bincount(chosen, minlength=len(lengths))
    assert times.max() - times.min() <= 1
    assert times.min() >= target // array.sum()
    nearest = abs(int(array[chosen].sum()) - target) <= max(lengths) / 2
    assert nearest or len(chosen) == 1


def test_scatter_is_a_fixed_permutation() -> None:
    assert scatter(8, 0).tolist() != list(range(8))
    assert sorted(scatter(1_000, 3).tolist()) == list(range(1_000))
    assert scatter(1_000, 3).tolist() == scatter(1_000, 3).tolist() != scatter(1_000, 4).tolist()


def test_scatter_is_splitmix64() -> None:
    def splitmix(state: int) -> int:
        mask = 2**64 - 1
        z = state * 0x9E3779B97F4A7C15 & mask
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        return z ^ (z >> 31)

    assert splitmix(1) == 0xE220A8397B1DCDAF  # the first output of the reference implementation with seed 0
    assert scatter(500, 0).tolist() == sorted(range(500), key=lambda n: splitmix(n + 1))


@pytest.mark.parametrize("seed", range(3))
def test_scatter_mixes_two_halves_evenly(seed: int) -> None:
    first = (scatter(10_000, seed)[:5_000] < 5_000).mean()
    assert abs(first - 0.5) < 0.025
