"""What the model thought of each token, and how OpenAI's answers tell it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from treering.errors import TreeringError

LEAST = -9999.0
"""What stands for the log-probability of a token that is ruled out, as at OpenAI's: JSON knows no infinity."""

_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}
"""The bytes, by the characters that byte-level tokenizers write them as."""


class Voice(NamedTuple):
    """What one of those who speak in a composition said of a token before it came.

    Attributes:
        weight: how much the rule listened to it, from 0 to 1.
        credit: its share in the token, see `treering.evaluation.attribution.credit`.
        logprob, top: as in `Said`; None of one that the rule let rest.
    """

    name: str
    weight: float
    credit: float
    logprob: float | None
    top: list[tuple[int, float]] | None


class Said(NamedTuple):
    """A token, and what the model said before it came.

    Attributes:
        logprob: its own log-probability; None for the first token of a text, of which nothing was said.
        top: the likeliest tokens with theirs, from the likeliest on; None for the first.
        start: where it starts in the text, in characters.
        voices: what each expert said of it; None if nobody asked.
        product: the share that a rule with ``together`` gave the experts' product, from 0 to 1.
    """

    id: int
    logprob: float | None = None
    top: list[tuple[int, float]] | None = None
    start: int = 0
    voices: list[Voice] | None = None
    product: float | None = None


def said(logits: Tensor, ids: Tensor, alternatives: int) -> list[Said]:
    """What logits [position, vocab] say of the tokens that came [position], in float32.

    Raises:
        TreeringError: they are no numbers.
    """
    likelihood = logits.float().log_softmax(-1)
    if likelihood.isnan().any():
        raise TreeringError("What the model makes of this text is no number (NaN): its weights are damaged.")
    likelihood = likelihood.clamp(min=LEAST)
    own = likelihood.gather(-1, ids[:, None])[:, 0].tolist()
    best = likelihood.topk(min(alternatives, likelihood.shape[-1]))
    pairs = (list(zip(*row, strict=True)) for row in zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return [Said(*each) for each in zip(ids.tolist(), own, pairs, strict=True)]


class Spelling:
    """How the tokens of a tokenizer are written in answers."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self.spell = cache(self._spell)

    def _spell(self, token: int) -> bytes:
        """The bytes that a token adds to a text; a special token's are its name."""
        name = str(self._tokenizer.convert_ids_to_tokens(token))
        if re.fullmatch("<0x[0-9A-F]{2}>", name):
            return bytes([int(name[3:5], 16)])
        # Twice, as some tokenizers leave out the space with which a text begins.
        once, twice = (str(self._tokenizer.decode([token] * count)) for count in (1, 2))
        if "\ufffd" in twice and _BYTES.keys() >= set(name):
            return bytes(_BYTES[character] for character in name)
        return twice[len(once) :].encode()

    def name(self, token: int, prefix: str = "") -> str:
        """A token's text; of one that is no whole characters, its bytes as OpenAI writes them, after ``prefix``."""
        spelled = self.spell(token)
        try:
            return spelled.decode()
        except UnicodeDecodeError:
            return prefix + "".join(f"\\x{byte:02x}" for byte in spelled)

    def of_completion(self, tokens: Sequence[Said]) -> dict[str, list[Any]]:
        """The ``logprobs`` of a completion's choice."""
        return {
            "tokens": [self.name(token.id, "bytes:") for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [self._by_name(token) for token in tokens],
            "text_offset": [token.start for token in tokens],
        }

    def _by_name(self, token: Said) -> dict[str, float] | None:
        """The alternatives and the token itself; of two that are written alike, the likelier one."""
        if token.top is None or token.logprob is None:
            return None
        named: dict[str, float] = {}
        for other, logprob in sorted([(token.id, token.logprob), *token.top], key=lambda pair: -pair[1]):
            named.setdefault(self.name(other, "bytes:"), logprob)
        return named

    def of_play(self, tokens: Sequence[Said]) -> dict[str, Any]:
        """Of each token all that is known of it, in the terms of ``treering explain --json``."""
        return {"tokens": [self._known(token) for token in tokens]}

    def _known(self, token: Said) -> dict[str, Any]:
        known = {"id": token.id, "token": self.name(token.id), "start": token.start, **self._likely(token)}
        if token.voices:
            known["experts"] = {
                voice.name: {"weight": round(voice.weight, 6), "credit": round(voice.credit, 6), **self._likely(voice)}
                for voice in token.voices
            }
        return known if token.product is None else known | {"product": round(token.product, 6)}

    def _likely(self, of: Said | Voice) -> dict[str, Any]:
        top = (
            None
            if of.top is None
            else [{"id": i, "token": self.name(i), "logprob": round(logprob, 5)} for i, logprob in of.top]
        )
        return {"logprob": None if of.logprob is None else round(of.logprob, 5), "top": top}

    def of_chat(self, tokens: Sequence[Said]) -> dict[str, Any]:
        """The ``logprobs`` of a chat's choice."""
        content = [
            self._alone(token.id, token.logprob) | {"top_logprobs": [self._alone(*pair) for pair in token.top or ()]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _alone(self, token: int, logprob: float | None) -> dict[str, Any]:
        return {"token": self.name(token), "logprob": logprob, "bytes": list(self.spell(token))}
