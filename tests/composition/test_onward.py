"""Reading by windows: for experts that look back one token only, the same as reading the document at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from treering.composition import Reading, rule
from treering.composition.onward import join_onward
from treering.composition.pools import log_likelihood
from treering.corpus import windows

VOCAB, D = 7, 2
RULES = [
    "mean",
    "evidence",
    "evidence:switch=0.1",
    "evidence:switch=0.1,together=0.2",
    "evidence:cache=0.3",
    "evidence:switch=0.1,together=0.1,cache=0.2",
    "top_k:switch=0.1",
    "gate:switch=0.1",
    "gate:pool=log",
    "adapter",
]


def experts(count, seed):
    """Bigram models: what they say after a token [expert, vocab, vocab], and their states after it [vocab, width]."""
    generator = torch.Generator().manual_seed(seed)
    random = {"generator": generator, "dtype": torch.float64}
    said, states = 3 * torch.randn(count, VOCAB, VOCAB, **random), torch.randn(VOCAB, count * D, **random)
    fusion = {
        "gate": torch.randn(count, count * (D + 1) + 1, **random),
        "adapter": torch.randn(VOCAB, count * D, **random),
    }
    return said, states, torch.randn(count, **random).log_softmax(0), fusion


def read(world, inputs):
    """Logits [expert, batch, position, vocab] and reading of input IDs [batch, position], as ``ComposedModel.read``."""
    said, states, prior, fusion = world
    logits = said[:, inputs]
    likelihood = log_likelihood(logits[:, :, :-1], inputs[:, 1:].expand(len(said), -1, -1))
    return logits, Reading(
        prior,
        torch.nn.functional.pad(likelihood, (1, 0)),
        hidden=states[inputs],
        fusion=fusion,
        tokens=inputs,
        said=lambda part: logits[:, :, part],
    )


@pytest.mark.parametrize("spec", RULES)
@settings(max_examples=25)
@given(
    count=st.integers(1, 3),
    length=st.integers(2, 40),
    rows=st.integers(1, 3),
    context=st.integers(2, 12),
    seed=st.integers(0, 2**16),
)
def test_windows_one_after_the_other_are_the_document_at_once(spec, count, length, rows, context, seed):
    world, chosen = experts(count, seed), rule(spec)
    document = torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))
    whole = chosen(*read(world, document[:, :-1]))
    before, logits, weights = [], [], []
    for cuts in zip(*(windows([row[1:]], row[0], context) for row in document.tolist()), strict=True):
        tokens, first = torch.tensor([window.tokens for window in cuts]), cuts[0].scored_from - 1
        found = join_onward([rule("mean"), chosen], *read(world, tokens[:, :-1]), tokens[:, 1:], before, first)
        logits.append(found.joined[1].logits)
        weights.append(found.joined[1].weights)
        before = [found.learnt(row, found.targets.shape[1]) for row in range(rows)]
    torch.testing.assert_close(torch.cat(logits, 1).softmax(-1), whole.logits.softmax(-1))
    torch.testing.assert_close(torch.cat(weights, 2).exp(), whole.weights.exp())


def test_padding_after_a_window_teaches_nothing():
    world, chosen = experts(2, 0), rule("evidence:switch=0.1,together=0.1,cache=0.2")
    tokens = torch.randint(VOCAB, (2, 12), generator=torch.Generator().manual_seed(1))
    padded = join_onward([chosen], *read(world, tokens[:, :-1]), tokens[:, 1:])
    short = join_onward([chosen], *read(world, tokens[:1, :7]), tokens[:1, 1:8])
    for ours, theirs in zip(vars(padded.learnt(0, 7)).values(), vars(short.learnt(0, 7)).values(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_is_context_only_is_not_counted_again():
    """The weights before the first new token are those of the window before, whatever its context says here."""
    world, chosen = experts(2, 3), rule("evidence")
    tokens = torch.randint(VOCAB, (1, 9), generator=torch.Generator().manual_seed(1))
    learnt = join_onward([chosen], *read(world, tokens[:, :6]), tokens[:, 1:7]).learnt(0, 6)
    logits, reading = read(world, tokens[:, 3:-1])
    other = replace(reading, likelihood=reading.likelihood - 5 * torch.arange(2)[:, None, None])
    found = join_onward([chosen], logits, other, tokens[:, 4:], [learnt], first=3)
    expected = (learnt.evidence[0] + learnt.foreseen).softmax(0)
    torch.testing.assert_close(found.joined[0].weights[:, 0, 0].exp(), expected)
