"""Experts at work in a composition: each reads a text from where it stands, and says which token comes next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from treering import backbone
from treering.composition.parts import is_known
from treering.composition.pools import log_likelihood
from treering.composition.states import States
from treering.errors import TreeringError

LOGITS_AT_ONCE = 3 * 2**19
"""Logits (tokens × vocabulary) that exist at once while a long prompt is weighed: 6 MiB in float32."""
WEIGHED_AT_ONCE = 2**18
"""Of those, how many a processor takes at once to normalise them, which needs four times their memory."""
FEW = 16
"""Rows of states for which a product with a head takes as long as reading the head's matrix."""


@dataclass(frozen=True)
class Text:
    """What a forward call is given to read.

    Attributes:
        begin: how many tokens of the text there were before.
        tokens: all of them and the new ones [batch, position]; None where nobody has to read an earlier one again.
    """

    input_ids: Tensor | None
    inputs_embeds: Tensor | None
    attention_mask: Tensor | None
    position_ids: Tensor | None
    begin: int = 0
    tokens: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where it lies, and so where what the experts say of it is joined."""
        return self._given.device

    @property
    def length(self) -> int:
        """Of what is new, in tokens."""
        return self._given.shape[1]

    @property
    def end(self) -> int:
        """How many tokens of the text there are after this call."""
        return self.begin + self.length

    @property
    def _given(self) -> Tensor:
        given = self.inputs_embeds if self.input_ids is None else self.input_ids
        if given is None:
            raise TreeringError("There is nothing to read: give input_ids.")
        return given

    def since(self, read: int) -> Text:
        """The text for somebody who has ``read`` so many of its tokens."""
        if read == self.begin:
            return self
        assert self.tokens is not None
        return Text.of(self.tokens, self.attention_mask, read)

    @classmethod
    def of(cls, tokens: Tensor, attention_mask: Tensor | None, read: int) -> Text:
        """What is left of ``tokens`` for somebody who has ``read`` so many, who stand where the mask says."""
        positions = None if attention_mask is None else (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, read:]
        return cls(tokens[:, read:], None, attention_mask, positions, read, tokens)

    def told(self) -> dict[str, Any]:
        """What every model is told of it, beside the tokens."""
        return {"attention_mask": self.attention_mask, "position_ids": self.position_ids}


class Below(Protocol):
    """What an expert or a trunk stands on."""

    def since(self, read: int, text: Text) -> Tensor:
        """Its states [batch, position, width] of the tokens from ``read`` on."""
        ...


@dataclass
class Substrate:
    """An embedding that experts share; a token's vector does not depend on the text."""

    embedding: nn.Module

    def since(self, read: int, text: Text) -> Tensor:
        """The vectors of the tokens from ``read`` on."""
        own = text.since(read)
        return self.embedding(own.input_ids) if own.inputs_embeds is None else own.inputs_embeds


@dataclass
class Stem:
    """A trunk at work in one forward call: it reads the text once, for all that stand on it.

    Attributes:
        model: a base model of the family, without embedding and final norm.
        cache: its part of the common cache; None if there is none.
        kept: what it made of the whole text, where somebody above may be behind; else None.
        read: how many tokens it has read.
        states: where nothing is kept, what it made of all that it read in this call.
    """

    below: Below
    model: PreTrainedModel
    cache: Cache | None
    kept: States | None
    read: int = field(init=False)
    states: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.read = self._first = 0 if self.cache is None else self.cache.get_seq_length()

    def since(self, read: int, text: Text) -> Tensor:
        """Its states of the tokens from ``read`` on; those that it has not read, it reads now."""
        if self.kept is None and read < self._first:
            assert self.cache is not None
            self.read = self._first = rewind(self.cache, read)
            self.states = None
        if self.read < text.end:
            new = self._states(text.since(self.read))
            self.read = text.end
            if self.kept is None:
                self.states = new if self.states is None else torch.cat([self.states, new], 1)
            else:
                self.kept.append(new)
        if self.kept is not None:
            return self.kept.states[:, read:]
        assert self.states is not None
        return self.states[:, read - self._first :]

    def _states(self, text: Text) -> Tensor:
        states = self.below.since(text.begin, text).to(self.model.dtype)
        said = self.model(
            inputs_embeds=states, past_key_values=self.cache, use_cache=self.cache is not None, **text.told()
        )
        return said.last_hidden_state


@dataclass
class Reader:
    """An expert with all that it needs to read on, in one forward call.

    Attributes:
        model: the expert; if it stands on something, its own upper part alone, without an embedding.
        below: what it stands on; None if it has an embedding of its own.
        vocabulary: how many tokens all experts have.
        cache: its part of the common cache; None if there is none.
        read: how many tokens it has read; given are those that there were before this call.
        ahead: what it made of each token that it read before the others did [batch, 1, width].
    """

    name: str
    model: PreTrainedModel
    below: Below | None
    vocabulary: int
    cache: Cache | None
    read: int = 0
    ahead: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.cache is not None and self.cache.layers:
            self.read = self.cache.get_seq_length()

    @property
    def is_bare(self) -> bool:
        """Whether it has no blocks of its own: what it says costs no more than its head, so it is never behind."""
        return self.below is not None and self.model.config.num_hidden_layers == 0

    def step_back(self) -> None:
        """Forget the last token, to read it again; or all, where a sliding window has let go of what it began with."""
        assert self.cache is not None
        self.read = rewind(self.cache, self.read - 1) if self.cache.layers else self.read - 1

    def go_ahead(self, text: Text) -> Tensor:
        """Read one token before the others do; when it is their turn, it is at hand."""
        self.ahead.append(self._final(text))
        return self.ahead[-1]

    def final(self, text: Text) -> Tensor:
        """What its head reads [batch, position, width]; of a family that is not known, its logits.

        Args:
            text: from the first token on that it has not read, or has read ahead.
        """
        return torch.cat(self.ahead, 1) if self.ahead else self._final(text)

    def _final(self, text: Text) -> Tensor:
        inputs: dict[str, Any] = {"past_key_values": self.cache, "use_cache": self.cache is not None} | text.told()
        if self.below is None and text.inputs_embeds is not None:
            raise TreeringError(f"{self.name} has an embedding of its own, so the composition needs input_ids.")
        if self.below is None:
            inputs["input_ids"] = text.input_ids
        else:
            inputs["inputs_embeds"] = self.below.since(text.begin, text).to(self.model.dtype)
        if self.is_bare:
            return backbone.final_norm(self.model)(inputs["inputs_embeds"]).to(text.device)
        known = is_known(self.model.config)
        reads = self.model.base_model(**inputs).last_hidden_state if known else self.model(**inputs).logits
        return reads.to(text.device)

    def logits(self, final: Tensor) -> Tensor:
        """Its logits [batch, position, vocab] from its final states: float32, of the tokens that all experts have."""
        logits = backbone.head(self.model)(final).to(final.device) if is_known(self.model.config) else final
        return logits[..., : self.vocabulary].float()

    def log_likelihood(self, final: Tensor, tokens: Tensor, logits: Tensor | None) -> Tensor:
        """Log-probabilities [batch, position] that it gives to ``tokens`` [batch, position + 1] but the first.

        Without ``logits`` at hand they are made from the final states a few positions at a time.
        """
        if logits is None:
            step = max(1, LOGITS_AT_ONCE // (len(tokens) * self.vocabulary))
            few = max(1, WEIGHED_AT_ONCE // (len(tokens) * self.vocabulary)) if final.device.type == "cpu" else step
            parts = zip(final[:, :-1].split(step, 1), tokens[:, 1:].split(step, 1), strict=True)
            weighed = [
                log_likelihood(*own)
                for part, part_tokens in parts
                for own in zip(self.logits(part).split(few, 1), part_tokens.split(few, 1), strict=True)
            ]
            return torch.cat(weighed, 1)
        return log_likelihood(logits[:, :-1], tokens[:, 1:])


def said(readers: Sequence[Reader], finals: Sequence[Tensor]) -> list[Tensor]:
    """The logits of several experts from their final states; those of one head by one product where that saves time.

    A decoding step takes as long as reading the weights, and a head is a large part of them; one product with it for
    all who share it takes hardly longer than for one. It rounds otherwise than a product for each (the last bits of
    float32); of a whole text every expert's logits are, bit for bit, those that it has alone.
    """
    sharing: dict[int, list[int]] = {}
    for e, reader in enumerate(readers):
        head = backbone.head(reader.model) if is_known(reader.model.config) else None
        count = finals[e].shape[:-1].numel()
        sharing.setdefault(~e if head is None or count * len(readers) > FEW else id(head), []).append(e)
    logits: dict[int, Tensor] = {}
    for together in sharing.values():
        if len(together) == 1:
            logits |= {e: readers[e].logits(finals[e]) for e in together}
            continue
        shapes = [finals[e].shape for e in together]
        rows = torch.cat([finals[e].flatten(0, 1) for e in together])
        parts = _transposed(backbone.head(readers[together[0]].model), rows).split(
            [shape[:2].numel() for shape in shapes]
        )
        for e, part, shape in zip(together, parts, shapes, strict=True):
            logits[e] = part.reshape(*shape[:2], -1)[..., : readers[e].vocabulary].float().to(finals[e].device)
    return [logits[e] for e in range(len(readers))]


def _transposed(head: nn.Module, rows: Tensor) -> Tensor:
    """What a head makes of a few rows [row, width]; a processor is faster with the large matrix on the left."""
    if type(head) is nn.Linear and head.bias is None and not hasattr(head, "_hf_hook"):
        return (head.weight @ rows.T).T
    return head(rows)


def rewind(cache: Cache, read: int) -> int:
    """Forget all but the first ``read`` tokens; or all of them, where a sliding window has let go of those it had.

    Returns:
        How many the cache still knows.
    """
    have = cache.get_seq_length()
    whole = all(layer.is_croppable and not 0 <= layer.get_max_length() <= have for layer in cache.layers)
    cache.crop(read - have if whole and read else -have)
    return read if whole else 0
