"""The text of one request while it is being written: tokens in, certain text out, in time linear in their number."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedTokenizerFast
from transformers.generation.streamers import BaseStreamer


class Stopped(Exception):
    """A stop string was written."""


class StopStrings:
    """Looks for the first of some strings in a text that comes in pieces, as Knuth, Morris and Pratt do.

    The first is the one that is complete first; of two that end at the same character, the longer one.
    """

    def __init__(self, strings: list[str]) -> None:
        self._strings = strings
        self._borders = [_borders(string) for string in strings]
        self._begun = [0] * len(strings)  # how much of each string the text ends with
        self._held = ""

    def feed(self, piece: str) -> tuple[str, bool]:
        """What is certain by now and was not before, and whether a stop string follows it."""
        text, new = self._held + piece, len(self._held)
        for at in range(new, len(text)):
            if found := self._step(text[at]):
                return text[: at + 1 - found], True
        certain = len(text) - max(self._begun, default=0)
        self._held = text[certain:]
        return text[:certain], False

    def rest(self) -> str:
        """What was held back because it may have begun a stop string; the text ends here."""
        return self._held

    def _step(self, character: str) -> int:
        """Read on; returns the length of the stop string that is complete with this character, or 0."""
        found = 0
        for i, (string, borders) in enumerate(zip(self._strings, self._borders, strict=True)):
            begun = self._begun[i]
            while begun and string[begun] != character:
                begun = borders[begun - 1]
            begun += string[begun] == character
            self._begun[i] = begun
            if begun == len(string):
                found = max(found, begun)
        return found


def _borders(string: str) -> list[int]:
    """For each beginning of a string, the length of the longest shorter beginning that it ends with."""
    borders, length = [0] * len(string), 0
    for at in range(1, len(string)):
        while length and string[at] != string[length]:
            length = borders[length - 1]
        length += string[at] == string[length]
        borders[at] = length
    return borders


class Written(BaseStreamer):
    """What ``generate`` pushes tokens into, and what goes on to ``send`` once it is certain.

    Exceptions are the way to end a generation from here; ``generate`` itself knows only its own reasons.

    Args:
        between: called before each token, and once before the first; what it raises ends the generation.

    Attributes:
        ids: the tokens so far.
        starts: for each of them, how many characters come before it. One that is a part of a character, or one of
            several bytes that are read together, starts where these start.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        stop: list[str],
        send: Callable[[str], None] = lambda text: None,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = StopStrings(stop)
        self._send = send
        self._between = between
        self._prompt_came = False
        self._sent: list[str] = []
        self._decoded = self._emitted = 0  # characters; of those decoded, some wait for what may be a stop string
        self.ids: list[int] = []
        self.starts: list[int] = []
        # Only the end of the text is decoded again: what the tokens from _settled on add to those from _context on,
        # which they may lean on (a first word loses the space before it, another does not).
        self._context = self._settled = self._look_again = 0

    @property
    def text(self) -> str:
        return "".join(self._sent)

    @property
    def certain(self) -> int:
        """How many tokens start within the text that is certain."""
        return bisect_left(self.starts, self._emitted)

    def put(self, value: torch.Tensor) -> None:
        """Take the next token [1]; the first call brings the prompt [1, tokens].

        Raises:
            Stopped: a stop string is complete; the text ends before it.
        """
        self._between()
        if self._prompt_came:
            self.take(int(value))
        self._prompt_came = True

    def take(self, token: int) -> None:
        """Take the next token; like `put`, whoever wrote it.

        Raises:
            Stopped: see `put`.
        """
        self.ids.append(token)
        self.starts.append(self._decoded)
        last = str(self._tokenizer.convert_ids_to_tokens(self.ids[-1]))
        if re.fullmatch("<0x..>", last) or not self._decode(self.ids[-1:]):
            return  # bytes are read together, also those on both sides of a token without text
        if len(self.ids) < self._look_again:
            return
        fresh = self._fresh()
        if fresh.endswith(
            "\ufffd"
        ):  # a character of which a part is still to come; or none, then do not look each time
            self._look_again = len(self.ids) + (len(self.ids) - self._settled) // 8
        elif fresh:
            if len(self.ids) - self._settled > 1:  # what came before it may be whole characters by now
                before = self._fresh(len(self.ids) - 1)
                self.starts[-1] += len(before) if fresh.startswith(before) else 0
            self._context, self._settled = self._settled, len(self.ids)
            self._forward(fresh)

    def end(self) -> None:
        """All that is left is certain now."""
        self._forward(self._fresh())
        self._emit(self._stop.rest())

    def _fresh(self, end: int | None = None) -> str:
        """What the tokens from `_settled` on add to the text, up to a certain one."""
        context = self._decode(self.ids[self._context : self._settled])
        return self._decode(self.ids[self._context : end])[len(context) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _forward(self, text: str) -> None:
        self._decoded += len(text)
        certain, stopped = self._stop.feed(text)
        self._emit(certain)
        if stopped:
            raise Stopped

    def _emit(self, text: str) -> None:
        if text:
            self._sent.append(text)
            self._emitted += len(text)
            self._send(text)


def laid_out(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> tuple[str, list[int]]:
    """The text of some tokens, and where in it each of them starts."""
    written = Written(tokenizer, [])
    for token in ids:
        written.take(token)
    written.end()
    return written.text, written.starts
