"""One expert at work in a composition: it reads a text and says which token comes next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from treering import backbone
from treering.composition.rules import precise
from treering.errors import TreeringError

LOGITS_AT_ONCE = 2**24
"""Logits (tokens × vocabulary) that exist at once while a long prompt is weighed: 64 MiB in float32."""


@dataclass(frozen=True)
class Text:
    """What a forward call is given to read."""

    input_ids: Tensor | None
    inputs_embeds: Tensor | None
    attention_mask: Tensor | None
    position_ids: Tensor | None

    @property
    def device(self) -> torch.device:
        """Where it lies, and so where what the experts say of it is joined."""
        return self._given.device

    @property
    def length(self) -> int:
        """In tokens."""
        return self._given.shape[1]

    @property
    def _given(self) -> Tensor:
        given = self.inputs_embeds if self.input_ids is None else self.input_ids
        if given is None:
            raise TreeringError("There is nothing to read: give input_ids.")
        return given

    def since(self, read: int, begin: int, tokens: Tensor) -> Text:
        """The text for an expert that has ``read`` so many of ``tokens``, the new ones of which ``begin`` there."""
        if read == begin:
            return self
        positions = None
        if self.attention_mask is not None:
            positions = (self.attention_mask.cumsum(-1) - 1).clamp(min=0)[:, read:]
        return Text(tokens[:, read:], None, self.attention_mask, positions)


@dataclass(frozen=True)
class Reader:
    """An expert with all that it needs to read on.

    Attributes:
        model: the expert; on a substrate, without an embedding.
        substrate: the embedding that it shares with others; None if it has its own.
        vocabulary: how many tokens all experts have.
        cache: its part of the common cache; None if there is none.
    """

    name: str
    model: PreTrainedModel
    substrate: nn.Module | None
    vocabulary: int
    cache: Cache | None

    @property
    def read(self) -> int:
        """How many tokens it has read."""
        return 0 if self.cache is None else self.cache.get_seq_length()

    def step_back(self) -> None:
        """Forget the last token, to read it again; or all, where a sliding window has let go of what it began with."""
        assert self.cache is not None
        whole = all(layer.is_croppable and not 0 <= layer.get_max_length() <= self.read for layer in self.cache.layers)
        self.cache.crop(-1 if whole else -self.read)

    def final(self, text: Text) -> Tensor:
        """What its head reads [batch, position, width]; of a family that is not known, its logits."""
        inputs: dict[str, Any] = {"attention_mask": text.attention_mask, "position_ids": text.position_ids}
        if self.substrate is None and text.inputs_embeds is not None:
            raise TreeringError(f"{self.name} has an embedding of its own, so the composition needs input_ids.")
        if self.substrate is None:
            inputs["input_ids"] = text.input_ids
        elif text.inputs_embeds is None:
            inputs["inputs_embeds"] = self.substrate(text.input_ids)
        else:
            inputs["inputs_embeds"] = text.inputs_embeds
        inputs |= {"past_key_values": self.cache, "use_cache": self.cache is not None}
        reads = (
            self.model.base_model(**inputs).last_hidden_state if is_known(self.model) else self.model(**inputs).logits
        )
        return reads.to(text.device)

    def logits(self, final: Tensor) -> Tensor:
        """Its logits [batch, position, vocab] from its final states: float32, of the tokens that all experts have."""
        logits = backbone.head(self.model)(final).to(final.device) if is_known(self.model) else final
        return logits[..., : self.vocabulary].float()

    def log_likelihood(self, final: Tensor, tokens: Tensor, logits: Tensor | None) -> Tensor:
        """Log-probabilities [batch, position] that it gives to ``tokens`` [batch, position + 1] but the first.

        Without ``logits`` at hand they are made from the final states a few positions at a time.
        """
        if logits is None:
            step = max(1, LOGITS_AT_ONCE // (len(tokens) * self.vocabulary))
            parts = zip(final[:, :-1].split(step, 1), tokens[:, 1:].split(step, 1), strict=True)
            return torch.cat([log_likelihood(self.logits(part), part_tokens) for part, part_tokens in parts], 1)
        return log_likelihood(logits[:, :-1], tokens[:, 1:])


def log_likelihood(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities […] of ``tokens`` […] under ``logits`` […, vocab], precise enough to be summed over a book."""
    largest = logits.amax(-1, keepdim=True).detach()
    level = (logits - largest).exp().sum(-1, dtype=precise(logits.device)).log() + largest[..., 0]
    return logits.gather(-1, tokens[..., None])[..., 0] - level


def is_known(expert: PreTrainedModel) -> bool:
    """Whether Treering knows where this family keeps its head, and so can have the final states that it reads."""
    return expert.config.model_type in backbone.FAMILIES
