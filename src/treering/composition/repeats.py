"""A model of what a text repeats of itself: no parameters, no training, any vocabulary.

What stood after the last few tokens when they came before is likely to come again (a cache model: Kuhn & De Mori 1990;
counted as in prediction by partial matching: Cleary & Witten 1984). Where ``c_n(v)`` of the ``N_n`` earlier places with
the same last n tokens were followed by v,

    p_n(v) = (c_n(v) + p_{n−1}(v)) / (N_n + 1),    n = 0 … ORDER,    p_{−1}(v) = 1/V:

each order is smoothed by the one below (a hierarchical Dirichlet prior of strength 1: MacKay & Peto 1995). Unrolled,
every earlier place has a weight, by how long a context it shares with the present one, and a token has the sum of the
weights of the places that it follows: attention without parameters.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

ORDER = 3
"""Tokens of context at most; longer ones change little (docs/rules.md)."""
NOTHING = -1
"""Stands among a text's tokens where there is none: padding."""
PAIRS_AT_ONCE = 2**21
"""Pairs of a position and an earlier place that are compared at once."""


def with_padding(tokens: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Tokens [batch, position], with `NOTHING` where a mask [batch, position] says that there is padding."""
    return tokens if attention_mask is None else tokens.masked_fill(attention_mask == 0, NOTHING)


def repeats(tokens: Tensor, at: Tensor, vocabulary: int) -> Tensor:
    """Log-probabilities [batch, position, vocab] of the token that follows each position ``at``.

    Args:
        tokens: a text from its beginning [batch, position]; `NOTHING` where there is no token.
        at: positions in it.
    """
    after, said = tokens[:, None, 1:].clamp(min=0), []
    for _, weights, rest in _attention(tokens, at):
        counted = weights.new_zeros(*weights.shape[:2], vocabulary)
        counted.scatter_add_(2, after.expand_as(weights), weights)
        said.append((counted + rest[..., None] / vocabulary).log())
    return torch.cat(said, 1)


def repeated(tokens: Tensor, first: int, vocabulary: int) -> Tensor:
    """Log-probabilities [batch, position - first] that it gave to the tokens from position ``first`` on.

    0, certainty, where nothing was to be predicted: a text's first token, padding.

    Args:
        tokens: as in `repeats`.
    """
    given = [torch.zeros(len(tokens), 0 if first else 1, device=tokens.device)]
    for at, weights, rest in _attention(tokens, torch.arange(max(first - 1, 0), tokens.shape[1] - 1).to(tokens.device)):
        token, follower = tokens[:, at], tokens[:, at + 1]
        same = tokens[:, None, 1:] == follower[..., None]
        likelihood = (torch.where(same, weights, 0.0).sum(-1) + rest / vocabulary).log()
        given.append(likelihood.masked_fill((token == NOTHING) | (follower == NOTHING), 0.0))
    return torch.cat(given, 1)


def _attention(tokens: Tensor, at: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """How much each earlier place counts, for some positions at a time.

    Yields:
        The positions; the weight of the token *after* each place of the text but its last [batch, position, place];
        and what is left for all tokens alike [batch, position].
    """
    places = tokens.shape[1] - 1
    padded = F.pad(tokens, (ORDER, 0), value=NOTHING)
    real = tokens != NOTHING
    follows = (real[:, :-1] & real[:, 1:])[:, None]
    for some in at.split(max(1, PAIRS_AT_ONCE // max(1, len(tokens) * places))):
        same = follows & (torch.arange(places, device=tokens.device) < some[:, None])
        matches = [same]
        for back in range(ORDER):
            here, there = padded[:, some + ORDER - back], padded[:, ORDER - back : ORDER - back + places]
            same = same & ((here[..., None] == there[:, None]) & (here != NOTHING)[..., None])
            matches.append(same)
        rest = torch.ones(len(tokens), len(some), device=tokens.device)
        weights = torch.zeros(same.shape, device=tokens.device)
        for same in reversed(matches):
            rest = rest / (same.sum(-1) + 1)
            weights += torch.where(same, rest[..., None], 0.0)
        yield some, weights, rest
