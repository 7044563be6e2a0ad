"""From a request's body to what the model reads: parsed, laid out, tokenised, on a thread of its own."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from treering.backbone import context_length
from treering.errors import TreeringError
from treering.evaluation import prompt_ids, require_room
from treering.serving.catalogue import Catalogue
from treering.serving.errors import ApiError
from treering.serving.hearing import voices_of
from treering.serving.limits import Limits
from treering.serving.requests import ChatRequest, CompletionRequest, Parameters, PlayRequest, parse
from treering.serving.templates import Renderer, TemplateError

COMPLETION_TOKENS = 16
"""How many tokens a completion gets when the request does not say, if they fit: OpenAI's default."""


@dataclass(frozen=True)
class Prompt:
    """What is read before an answer.

    Attributes:
        ids: its tokens.
        begin: how many of them nobody gave: the separator before a text.
        text: None if it was given as token IDs.
        room: how many tokens may be written after it.
        written: how many of its last tokens are the beginning of the answer.
        known: how many of these are not told again.
    """

    ids: list[int]
    begin: int
    text: str | None
    room: int
    written: int = 0
    known: int = 0


@dataclass(frozen=True)
class Asked:
    """A request to a model.

    Attributes:
        alternatives: how many are told beside each token; None if no log-probabilities are.
        echo: the prompt is a part of the answer.
        voices: who else is heard, see `voices_of`; None if only the model is.
    """

    parameters: Parameters
    model: PreTrainedModel
    prompts: list[Prompt]
    alternatives: int | None
    echo: bool
    voices: tuple[str, ...] | None = None


class Reader:
    """Reads requests to one model, one after the other, off the event loop.

    Its tokenizer is a copy: prompts are encoded with special tokens switched off, which is a setting of the tokenizer,
    while other threads decode with theirs.
    """

    def __init__(self, catalogue: Catalogue, tokenizer: PreTrainedTokenizerFast, limits: Limits) -> None:
        self._catalogue = catalogue
        self._tokenizer = copy.deepcopy(tokenizer)
        self._limits = limits
        context = context_length(catalogue.find(catalogue.name).config)
        self._longest = context * max(map(len, tokenizer.get_vocab()))  # characters, for all names alike
        self._renderer: Renderer | None = None
        self._thread = ThreadPoolExecutor(1, "reader")

    def close(self) -> None:
        """End the thread, when it has read what it is reading, and the process that renders templates."""
        self._thread.shutdown(cancel_futures=True)
        if self._renderer is not None:
            self._renderer.close()

    async def read(self, kind: type[Parameters], body: bytes) -> Asked:
        """What is asked for in the body of a request.

        Raises:
            ApiError: 400 or 404, it is not a request that this model can answer.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._read, kind, body)

    def _read(self, kind: type[Parameters], body: bytes) -> Asked:
        given = parse(kind, body)
        model = self._catalogue.find(given.model)
        require_tokens(model, given.logit_bias, "logit_bias")
        self._require_few(len(given.prompt) if isinstance(given, CompletionRequest) else 1, given.n)
        if isinstance(given, PlayRequest):
            asked = self._play(model, given)
        elif isinstance(given, ChatRequest):
            tokens = given.max_completion_tokens or given.max_tokens
            prompt = self._prompt(model, self._conversation(given), tokens, None, "messages")
            asked = Asked(given, model, [prompt], (given.top_logprobs or 0) if given.logprobs else None, False)
        else:
            assert isinstance(given, CompletionRequest)
            tokens, usual = given.max_tokens, COMPLETION_TOKENS
            prompts = [self._prompt(model, prompt, tokens, usual, "prompt") for prompt in given.prompt]
            asked = Asked(given, model, prompts, given.logprobs, given.echo)
        self._require_short(asked)
        return asked

    def _play(self, model: PreTrainedModel, given: PlayRequest) -> Asked:
        require_tokens(model, given.tokens, "tokens")
        text, param = (self._conversation(given), "messages") if given.messages else (given.prompt, "prompt")
        # Who plays gets what fits: a text is written on until the context ends.
        tokens, usual = (0, None) if given.max_tokens == 0 else (None, given.max_tokens or COMPLETION_TOKENS)
        prompt = self._prompt(model, text, tokens, usual, param, given.tokens)
        return Asked(given, model, [replace(prompt, known=given.known)], given.top, given.echo, voices_of(model))

    def _prompt(
        self,
        model: PreTrainedModel,
        given: str | list[int],
        tokens: int | None,
        usual: int | None,
        param: str,
        written: Sequence[int] = (),
    ) -> Prompt:
        """A prompt as the model reads it, with room for ``tokens`` after it, else for ``usual`` if they fit.

        A text begins a document; token IDs are read as they are. After it stands what is ``written`` already.
        """
        needed = int(not written) if tokens is None else tokens
        context = context_length(model.config)
        try:
            if isinstance(given, str):
                if len(given) > self._longest:  # no need to tokenise it
                    raise TreeringError(
                        f"The text has more than {self._longest:,} characters; the model's context is {context:,} "
                        "tokens."
                    )
                ids, begin, text = prompt_ids(model, self._tokenizer, given, needed + len(written)), 1, given
            else:
                require_tokens(model, given, param)
                require_room(model, len(given), needed)
                ids, begin, text = given, 0, None
        except TreeringError as error:
            raise ApiError(400, str(error), "context_length_exceeded", param) from error
        ids = [*ids, *written]
        left = context - len(ids)
        return Prompt(ids, begin, text, min(usual or left, left) if tokens is None else tokens, len(written))

    def _conversation(self, asked: ChatRequest | PlayRequest) -> str:
        """The messages as one text, as the chat template lays them out."""
        if not self._tokenizer.chat_template:
            raise ApiError(
                400,
                f"{self._catalogue.name} has no chat template: its tokenizer knows of no conversations. "
                "Use /v1/completions.",
            )
        messages = [message.model_dump(exclude_none=True) for message in asked.messages]
        try:
            if self._renderer is None:
                template = self._tokenizer.get_chat_template()
                self._renderer = Renderer(template, self._tokenizer.special_tokens_map, self._longest)
            return self._renderer.render(messages)
        except (TemplateError, ValueError) as error:  # ValueError: there are several templates and none is the default
            raise ApiError(400, f"The chat template refuses these messages: {error}", param="messages") from error

    def _require_few(self, prompts: int, n: int) -> None:
        """Raise an ApiError, 400, if more texts are asked for than one request may."""
        if prompts * n > self._limits.choices:
            raise ApiError(
                400,
                f"{n} choices for each of {prompts:,} prompts are {prompts * n:,} texts; one request may ask for "
                f"{self._limits.choices:,}.",
                "invalid_value",
                "n" if prompts == 1 else "prompt",
            )

    @staticmethod
    def _told(asked: Asked, prompt: Prompt) -> int:
        """How many tokens of and after a prompt may be told."""
        return prompt.room + (len(prompt.ids) if asked.echo else prompt.written - prompt.known)

    def _require_short(self, asked: Asked) -> None:
        """Raise an ApiError, 400, if an answer with its prompts or with log-probabilities might be too long."""
        if asked.alternatives is None and not asked.echo:
            return
        each = (1 + (asked.alternatives or 0)) * (1 + len(asked.voices or ()))
        tokens = sum(self._told(asked, prompt) for prompt in asked.prompts) * asked.parameters.n
        if tokens * each > self._limits.tokens:
            raise ApiError(
                400,
                f"This answer may have {tokens:,} tokens, with {each - 1} alternatives to each; one may have "
                f"{self._limits.tokens:,}, alternatives included. Ask for fewer tokens, choices or alternatives.",
                "invalid_value",
                "echo" if asked.alternatives is None else "logprobs",
            )


def require_tokens(model: PreTrainedModel, ids: Iterable[int], param: str) -> None:
    """Refuse tokens that the model does not have.

    Raises:
        ApiError: 400, there is one; names it.
    """
    vocabulary = model.config.vocab_size
    if beyond := [token for token in ids if token >= vocabulary]:
        raise ApiError(
            400,
            f"{param} names token {beyond[0]}; the model has {vocabulary:,}, from 0 on.",
            "invalid_value",
            param,
        )
