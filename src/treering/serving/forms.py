"""OpenAI's objects, of what is written for a request."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple
from uuid import uuid4

from treering.serving.logprobs import Said, Spelling

Reason = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """What is new of one choice, or all of it.

    Attributes:
        index: of the choice.
        said: the tokens that start in the text, and what the model said of them; None if nobody asked.
        reason: why the choice ends; None if it goes on.
    """

    index: int
    text: str
    said: list[Said] | None = None
    reason: Reason | None = None


class Usage(NamedTuple):
    """Tokens read and written for a request. Each prompt is read once, whatever the number of its choices.

    Attributes:
        seconds: from the first token of the last text to its last.
    """

    read: int
    written: int
    seconds: float = 0.0

    def told(self) -> dict[str, int]:
        """OpenAI's object."""
        return {
            "prompt_tokens": self.read,
            "completion_tokens": self.written,
            "total_tokens": self.read + self.written,
        }


class Form(ABC):
    """The objects of one answer: ``whole``, or an ``event`` for each piece of it."""

    prefix: str
    kinds: tuple[str, str]
    """What the whole and a piece are called."""

    def __init__(self, model: str, spelling: Spelling) -> None:
        self._spelling = spelling
        self._head = {"id": f"{self.prefix}-{uuid4().hex}", "created": int(time.time()), "model": model}

    def event(self, piece: Piece, usage: Usage | None = None) -> str:
        """A piece, as a server-sent event; the last one tells of the ``usage``."""
        told = {"object": self.kinds[1], **self._head, "choices": [self._choice(piece) | self._delta(piece)]}
        return f"data: {_json(told | ({'usage': self._used(usage)} if usage else {}))}\n\n"

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> str:
        """All that was written, as JSON."""
        by_choice: dict[int, list[Piece]] = {}
        for piece in pieces:
            by_choice.setdefault(piece.index, []).append(piece)
        choices = [self._choice(piece) | self._full(piece) for piece in map(_together, by_choice.values())]
        return _json({"object": self.kinds[0], **self._head, "choices": choices, "usage": self._used(usage)})

    def _choice(self, piece: Piece) -> dict[str, Any]:
        logprobs = self._logprobs(piece.said) if piece.said is not None else None
        return {"index": piece.index, "logprobs": logprobs, "finish_reason": piece.reason}

    def _used(self, usage: Usage) -> dict[str, Any]:
        return usage.told()

    @abstractmethod
    def _logprobs(self, said: Sequence[Said]) -> dict[str, Any]:
        """What the model said of each token."""

    @abstractmethod
    def _full(self, piece: Piece) -> dict[str, Any]:
        """The text of a whole choice."""

    @abstractmethod
    def _delta(self, piece: Piece) -> dict[str, Any]:
        """What is new of the text."""


class CompletionForm(Form):
    """The objects of ``/v1/completions``."""

    prefix, kinds = "cmpl", ("text_completion", "text_completion")

    def _logprobs(self, said: Sequence[Said]) -> dict[str, Any]:
        return self._spelling.of_completion(said)

    def _full(self, piece: Piece) -> dict[str, Any]:
        return {"text": piece.text}

    _delta = _full


class ChatForm(Form):
    """The objects of ``/v1/chat/completions``."""

    prefix, kinds = "chatcmpl", ("chat.completion", "chat.completion.chunk")

    def __init__(self, model: str, spelling: Spelling) -> None:
        super().__init__(model, spelling)
        self._begun: set[int] = set()

    def _logprobs(self, said: Sequence[Said]) -> dict[str, Any]:
        return self._spelling.of_chat(said)

    def _full(self, piece: Piece) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": piece.text, "refusal": None}}

    def _delta(self, piece: Piece) -> dict[str, Any]:
        """The first piece of a choice says who speaks."""
        if piece.index in self._begun:
            return {"delta": {"content": piece.text} if piece.text else {}}
        self._begun.add(piece.index)
        return {"delta": {"role": "assistant", "content": piece.text}}


class PlayForm(CompletionForm):
    """The objects of ``/play``."""

    prefix, kinds = "play", ("play", "play.chunk")

    def _logprobs(self, said: Sequence[Said]) -> dict[str, Any]:
        return self._spelling.of_play(said)

    def _used(self, usage: Usage) -> dict[str, Any]:
        speed = (usage.written - 1) / usage.seconds if usage.seconds else None
        return usage.told() | {"tokens_per_second": speed and round(speed, 2)}


def _together(pieces: Sequence[Piece]) -> Piece:
    """The pieces of one choice as one."""
    said = None if pieces[-1].said is None else [token for piece in pieces for token in piece.said or ()]
    return Piece(pieces[-1].index, "".join(piece.text for piece in pieces), said, pieces[-1].reason)


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
