"""What a text repeats of itself, against the recursion over dictionaries that it is a closed form of."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from treering.composition import repeats as module
from treering.composition.repeats import NOTHING, repeated, repeats

V = 5
texts = st.lists(st.lists(st.integers(0, 2), min_size=30, max_size=30), min_size=1, max_size=2)


@given(texts)
def test_it_counts_what_followed_equal_contexts(counted, text):
    said = repeats(torch.tensor(text), torch.arange(30), V).exp()
    for row, own in zip(said, text, strict=True):
        expected = [counted(own[: end + 1], V) for end in range(30)]
        torch.testing.assert_close(row.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-7)


@given(texts, st.integers(0, 29))
def test_what_it_gave_a_token_is_what_it_had_said(text, first):
    tokens = torch.tensor(text)
    said = repeats(tokens, torch.arange(29), V).gather(2, tokens[:, 1:, None])[..., 0]
    before = torch.cat([torch.zeros(len(tokens), 1), said], 1)
    torch.testing.assert_close(repeated(tokens, first, V), before[:, first:])


@given(texts, st.integers(1, 6), st.sampled_from(["left", "right"]))
def test_padding_is_no_text(text, width, side):
    tokens = torch.tensor(text)
    nothing = torch.full((len(tokens), width), NOTHING)
    padded = torch.cat([nothing, tokens] if side == "left" else [tokens, nothing], 1)
    moved = width if side == "left" else 0
    at = torch.arange(30)
    torch.testing.assert_close(repeats(padded, at + moved, V), repeats(tokens, at, V))
    given = repeated(padded, 0, V)
    torch.testing.assert_close(given[:, moved : moved + 30], repeated(tokens, 0, V))
    assert given.count_nonzero() == repeated(tokens, 0, V).count_nonzero()


def test_how_many_are_compared_at_once_changes_nothing(monkeypatch):
    tokens = torch.randint(3, (2, 40), generator=torch.Generator().manual_seed(0))
    whole, given = repeats(tokens, torch.arange(40), V), repeated(tokens, 0, V)
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", 200)
    assert repeats(tokens, torch.arange(40), V).equal(whole) and repeated(tokens, 0, V).equal(given)


@pytest.mark.parametrize("length", [1, 2])
def test_a_text_that_has_just_begun_repeats_nothing(length):
    tokens = torch.arange(length)[None]
    said = repeats(tokens, torch.arange(length), V).exp()
    torch.testing.assert_close(said[0, 0], torch.full((V,), 1 / V))
    torch.testing.assert_close(said.sum(-1), torch.ones(1, length))
    assert repeated(tokens, 0, V).shape == (1, length)
