"""What a composition remembers of the text it reads, beside its experts' keys and values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from treering.composition.pools import log_likelihood
from treering.composition.posterior import precise
from treering.composition.rules import most_rows

REMEMBERED = 32
"""Positions at which an expert's logits are kept until the next call: more than assisted decoding guesses at once, and
so may take back."""


class Transcript(DynamicLayer):
    """The first layer of a composition's cache: the tokens read so far, and how each expert did on them.

    It is a layer like those of the experts, so that everything which reorders, repeats, selects or crops a cache (beam
    search, several samples of one prompt, assisted decoding) carries the evidence along.

    ``keys`` are the token IDs [batch, 1, position, 1], ``values`` the experts' log-likelihoods and what a rule's
    evidence was [batch, 1, position, expert + row] (see ``rules.Joined``), as precise as the device can
    (``posterior.precise``).

    Attributes:
        pending: for each expert, its logits [batch, position, vocab] after the last tokens that it read, at most
            ``REMEMBERED`` of them, or None where they are not known (it has read nothing, or more was cropped).
        learns: what the rule that began the text mixes with the evidence, ``together`` or ``cache``.
    """

    def __init__(self, experts: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.experts = experts
        self.pending: list[Tensor | None] = [None] * experts
        self.learns: set[str] = set()

    def remember(self, expert: int, logits: Tensor) -> None:
        """Keep what an expert said [batch, position, vocab] after the last tokens that it read."""
        last = logits[:, -REMEMBERED:].detach()
        self.pending[expert] = last if last.shape == logits.shape else last.clone()  # a view would keep all of them

    def foresaw(self, tokens: Tensor) -> list[Tensor | None]:
        """For each expert, the log-probability that it gave the next ``tokens`` [batch], where that is known."""
        return [None if said is None else log_likelihood(said[:, -1], tokens) for said in self.pending]

    def append(self, input_ids: Tensor) -> None:
        """Add tokens [batch, position] that no expert has read yet."""
        device = input_ids.device
        kept = self.experts + most_rows(self.experts)
        blank = torch.zeros(*input_ids.shape, kept, device=device, dtype=precise(device))
        self.update(input_ids[:, None, :, None], blank[:, None])

    @property
    def input_ids(self) -> Tensor:
        """All tokens [batch, position]."""
        assert self.keys is not None
        return self.keys[:, 0, :, 0].long()

    @property
    def likelihood(self) -> Tensor:
        """A view [expert, batch, position] to read and write; 0, certainty, for what an expert has not read."""
        assert self.values is not None
        return self.values[:, 0, :, : self.experts].movedim(-1, 0)

    @property
    def evidence(self) -> Tensor:
        """A view [row, batch, position] to read and write: ``rules.Joined.evidence`` after each token."""
        assert self.values is not None
        return self.values[:, 0, :, self.experts :].movedim(-1, 0)

    @property
    def weights(self) -> Tensor:
        """Of that the experts' own log-weights [expert, batch, position]."""
        return self.evidence[: self.experts]

    def reorder_cache(self, beam_idx: Any) -> None:
        super().reorder_cache(beam_idx)
        self._map_pending(lambda rows: rows.index_select(0, beam_idx.to(rows.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._map_pending(lambda rows: rows.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._map_pending(lambda rows: rows[indices])

    def crop(self, *args: Any) -> None:
        before = self.get_seq_length()
        super().crop(*args)
        removed = before - self.get_seq_length()
        self.pending = [
            rows[:, : rows.shape[1] - removed] if rows is not None and rows.shape[1] > removed else None
            for rows in self.pending
        ]

    def reset(self) -> None:
        super().reset()
        self.pending = [None] * self.experts

    def _map_pending(self, change: Any) -> None:
        self.pending = [None if rows is None else change(rows) for rows in self.pending]
