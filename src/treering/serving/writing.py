"""The texts of one request, written one after the other on one thread of the server."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.generation.streamers import BaseStreamer

from treering.backbone import keeps_keys_and_values
from treering.composition import ComposedModel, draw, may_speculate, speculative
from treering.serving.forms import Piece, Reason, Usage
from treering.serving.hearing import Heard, heard_by, told
from treering.serving.logprobs import Said
from treering.serving.reading import Asked, Prompt
from treering.serving.requests import Parameters
from treering.serving.served import Served
from treering.serving.written import Stopped, Written, laid_out

LOGITS_AT_ONCE = 2**22
"""Logits (tokens × vocabulary) that exist at once while a prompt is read: 16 MiB in float32."""


class Writing:
    """Writes what a request asks for: ``n`` choices for each of its prompts.

    One after the other, so that a request takes one turn on the model and has one cache like any other, however many
    texts it asks for (of a prompt with several choices, what was cached of it is kept beside). What the model says is
    heard before temperature, bias and penalty.

    Args:
        tell: called with each piece as soon as it is certain; with the last one, also with the usage.
        require_reader: raises an exception if nobody waits for the answer any longer.
    """

    def __init__(
        self,
        served: Served,
        asked: Asked,
        tell: Callable[[Piece, Usage | None], None],
        require_reader: Callable[[], None],
    ) -> None:
        self._served = served
        self._asked = asked
        self._tell = tell
        self._require_reader = require_reader

    def run(self) -> None:
        """Write all."""
        prompts, n, written = self._asked.prompts, self._asked.parameters.n, 0
        for number, prompt in enumerate(prompts):
            begin = len(prompt.ids) - prompt.written
            cache, heard = self._read(prompt) if self._is_read_apart(prompt) else (None, [*map(Said, prompt.ids)])
            echo = self._echo(prompt, heard[:begin]) if self._asked.echo else None
            for choice in range(n):
                index, is_last = number * n + choice, (number, choice) == (len(prompts) - 1, n - 1)
                if echo is not None:
                    self._tell(replace(echo, index=index), None)
                after = len(echo.text) if echo else 0
                text = _Text(self._served.tokenizer, self._asked, index, after, self._tell, self._between)
                own = cache if choice == n - 1 else copy.deepcopy(cache)
                last = self._write(prompt, text, heard[begin:], choice, own)
                written += len(text.written.ids) - prompt.written
                usage = Usage(sum(len(prompt.ids) for prompt in prompts), written, text.seconds)
                self._tell(last, usage if is_last else None)

    @property
    def _is_drawn(self) -> bool:
        """Whether each answer is one drawn expert's; what the composition says of it, that expert cannot tell."""
        model, parameters = self._asked.model, self._asked.parameters
        return (
            self._served.alone is not None
            and isinstance(model, ComposedModel)
            and model.rule.name == "evidence"
            and parameters.is_plain_sampling
            and self._asked.alternatives is None
        )

    @property
    def _is_led(self) -> bool:
        """Whether the most credible expert leads: nobody does where what all say of each token is told."""
        tells = self._asked.alternatives is not None
        return self._served.speculates and not tells and may_speculate(self._asked.model)

    def _told_from(self, prompt: Prompt) -> int:
        """The first of a prompt's tokens of which the answer tells what the model said; their number if of none."""
        if self._asked.echo and self._asked.alternatives is not None:
            return prompt.begin
        return len(prompt.ids) - prompt.written + prompt.known

    def _is_read_apart(self, prompt: Prompt) -> bool:
        """Whether a prompt is read before a text is begun: because it is told of, or has several."""
        several = self._asked.parameters.n > 1 and prompt.room > 0 and not self._is_drawn
        is_told = self._told_from(prompt) < len(prompt.ids)
        return is_told or (several and keeps_keys_and_values(self._asked.model))

    @torch.no_grad()
    def _read(self, prompt: Prompt) -> tuple[Cache | None, list[Said]]:
        """Read all of a prompt but its last token: a piece at a time, if keys and values are kept of it.

        Returns:
            What is cached of it, and for each of its tokens what the model said of it, if that is to be told.
        """
        said, voices = list[Heard](), self._asked.voices or ()
        model: Any = heard_by(said.append, self._asked.model, bool(voices))
        ids = torch.tensor(prompt.ids, device=model.device)
        cached: Any = {"use_cache": True} if keeps_keys_and_values(model) else {}
        at_once = max(1, LOGITS_AT_ONCE // model.config.vocab_size // (1 + len(voices))) if cached else len(ids)
        first = max(1, self._told_from(prompt))
        heard = [*map(Said, prompt.ids[:1])]
        self._require_reader()
        with self._served.turns:
            for piece in filter(len, ids[:-1].split(at_once)):
                read = model(piece[None], **cached)
                if cached:
                    cached["past_key_values"] = read.past_key_values
                following, untold = ids[len(heard) :][: len(piece)], min(len(piece), max(0, first - len(heard)))
                heard += map(Said, following[:untold].tolist())
                if untold < len(piece):
                    after = said[-1].since(untold)
                    heard += told(after, following[untold:], self._asked.alternatives or 0, voices)
                said.clear()
                self._between()
        return cached.get("past_key_values"), heard

    def _echo(self, prompt: Prompt, heard: list[Said]) -> Piece:
        """A prompt as the beginning of an answer."""
        tokens = heard[prompt.begin :]
        text, starts = laid_out(self._served.tokenizer, [token.id for token in tokens])
        text = text if prompt.text is None else prompt.text
        if self._asked.alternatives is None:
            return Piece(0, text)
        if self._asked.voices is None:  # of the first, OpenAI tells nothing
            tokens[:1] = [Said(token.id) for token in tokens[:1]]
        placed = [token._replace(start=min(at, len(text))) for token, at in zip(tokens, starts, strict=True)]
        return Piece(0, text, placed)

    def _write(self, prompt: Prompt, text: _Text, begun: Sequence[Said], choice: int, cache: Cache | None) -> Piece:
        """Write one text, or the rest of one that is ``begun``; returns the last piece of it."""
        try:
            text.begin(begun, prompt.known)
        except Stopped:
            return text.rest("stop", is_cut=True)
        if not prompt.room:
            text.end()
            return text.rest("length")
        asked, model = self._asked.parameters, self._asked.model
        ids = torch.tensor([prompt.ids], device=model.device)
        config = generation_config(model, self._served.tokenizer, asked, prompt.room)
        self._require_reader()
        try:
            with self._served.turns:
                # Here, not where the request came in: the numbers are drawn from a generator that all threads share.
                torch.seed() if asked.seed is None else torch.manual_seed(seed_of(asked.seed, choice))
                if self._is_drawn:
                    draw(model, ids, prompt.room, text, self._served.alone)
                else:
                    voices, tells = bool(self._asked.voices), self._asked.alternatives is not None
                    writer: Any = heard_by(text.hear, model, voices) if tells else model
                    read: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
                    if self._is_led:
                        read["custom_generate"] = partial(speculative, streamer=text)
                    mask = torch.ones_like(ids)
                    writer.generate(ids, attention_mask=mask, generation_config=config, streamer=text, **read)
        except Stopped:
            return text.rest("stop", is_cut=True)
        ends = config.eos_token_id
        ended = text.written.ids[-1] in (ends if isinstance(ends, list) else [ends])
        return text.rest("stop" if ended else "length")

    def _between(self) -> None:
        """Between two tokens: see whether to go on, and let another text have its turn."""
        self._require_reader()
        if self._served.turns.over():
            device = self._asked.model.device
            numbers: Any = torch if device.type == "cpu" else torch.get_device_module(device)
            state = numbers.get_rng_state()
            self._served.turns.pass_on()
            numbers.set_rng_state(state)
            self._require_reader()


class _Text(BaseStreamer):
    """One text while it is written: what the model says of the next token, which one comes, and what is certain.

    Args:
        begin: characters before it in the answer.
        between: see `Written`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        asked: Asked,
        index: int,
        begin: int,
        tell: Callable[[Piece, Usage | None], None],
        between: Callable[[], None],
    ) -> None:
        self.written = Written(tokenizer, asked.parameters.stop, self._send, between)
        self._alternatives = asked.alternatives
        self._voices = asked.voices or ()
        self._index, self._begin, self._tell = index, begin, tell
        self._said: list[Said] = []
        self._told = self._known = self._characters = 0
        self._times: list[float] = []

    @property
    def seconds(self) -> float:
        """From the first token that was written to the last."""
        return self._times[-1] - self._times[0] if self._times else 0.0

    def begin(self, tokens: Sequence[Said], known: int) -> None:
        """Take tokens that were written before; so many of them are known and not told again.

        Raises:
            Stopped: a stop string is complete.
        """
        self._known = self._told = known
        for token in tokens:
            self._said.append(token)
            self.written.take(token.id)

    def hear(self, heard: Heard) -> None:
        """Take what is said of the next token, at the last of some positions."""
        self._heard = heard.since(len(heard.logits) - 1)

    def put(self, value: Tensor) -> None:
        """Take the next token [1]; the first call brings the prompt [1, tokens]."""
        if value.dim() == 1:
            self._times = [*self._times[:1], time.monotonic()]
            if self._alternatives is not None:
                came = value.to(self._heard.logits.device)
                self._said += told(self._heard, came, self._alternatives, self._voices)
        self.written.put(value)

    def end(self) -> None:
        self.written.end()

    def rest(self, reason: Reason, is_cut: bool = False) -> Piece:
        """The last piece: the tokens without text that are left, unless the text was cut before them."""
        return Piece(self._index, "", self._until(self._told if is_cut else len(self._said)), reason)

    def _send(self, text: str) -> None:
        before, self._characters = self._characters, self._characters + len(text)
        if self._known:  # what stands before the first token that is told is known as well
            after = self.written.starts[self._known :][:1]
            text = text[max(0, after[0] - before) :] if after else ""
        if text:
            self._tell(Piece(self._index, text, self._until(self.written.certain)), None)

    def _until(self, end: int) -> list[Said] | None:
        """The tokens up to a certain one that have not been told yet."""
        if self._alternatives is None:
            return None
        begin, self._told = self._told, max(self._told, end)
        starts = self.written.starts[begin:end]
        return [s._replace(start=self._begin + at) for s, at in zip(self._said[begin:end], starts, strict=True)]


def seed_of(seed: int, choice: int) -> int:
    """The seed of one of several choices; the first is the one that would be written alone."""
    return random.Random(f"{seed} {choice}").getrandbits(63) if choice else seed


def generation_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, asked: Parameters, tokens: int
) -> GenerationConfig:
    """The parameters of a request in transformers' terms, over what the model says of itself (such as its end token).

    Args:
        tokens: how many are written at most.
    """
    sampling = asked.temperature >= 1e-5  # colder than that, logits divided by it are no longer finite
    config = copy.deepcopy(model.generation_config)
    config.update(
        max_new_tokens=tokens,
        max_length=None,
        num_beams=1,
        do_sample=sampling,
        temperature=asked.temperature if sampling else None,
        top_p=asked.top_p if sampling else None,
        top_k=0 if sampling else None,  # None would be transformers' 50
        repetition_penalty=1 + asked.frequency_penalty,
        sequence_bias={(token,): bias for token, bias in asked.logit_bias.items()} or None,
        pad_token_id=tokenizer.pad_token_id,
    )
    return config
