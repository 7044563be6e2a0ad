"""What a trunk made of a text, kept for those above it that are behind."""

from __future__ import annotations

from torch import Tensor
from transformers.cache_utils import DynamicLayer


class States(DynamicLayer):
    """A trunk's states of all that it has read, so that a branch that slept catches up from its fork.

    It lies in the common cache as a layer like those of keys and values, so that everything which reorders, repeats,
    selects or crops a cache carries it along. ``keys`` are the states [batch, 1, position, width], ``values`` nothing.
    """

    def append(self, states: Tensor) -> None:
        """Add what the trunk made of the next tokens [batch, position, width]."""
        self.update(states[:, None], states.new_empty(*states.shape[:1], 1, states.shape[1], 0))

    @property
    def states(self) -> Tensor:
        """All of them [batch, position, width]."""
        assert self.keys is not None
        return self.keys[:, 0]
