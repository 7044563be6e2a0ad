"""What a client may ask for: OpenAI's parameters, with OpenAI's defaults.

A parameter that is not here is refused, and so is a value that the server could only ignore: nobody gets another text
than the one asked for. Values that change nothing (``presence_penalty=0``) are accepted, because clients send them
unasked.
Everything has a largest size, and of all that is wrong only the first thing is looked for and told.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import from_json

from treering.serving.errors import ApiError

STOPS, STOP_CHARACTERS, BIASES, MESSAGES = 4, 1024, 1024, 4096
"""The most stop strings (as at OpenAI's), characters of one, biases and messages of a request."""

CHOICES, COMPLETION_LOGPROBS, CHAT_LOGPROBS = 128, 5, 20
"""The most choices for one prompt, and alternatives to each token of a completion and of a chat, as at OpenAI's."""

LARGEST = 2**31 - 1
"""The largest number of tokens, and the largest ID of one, that can be asked for."""

Name = Annotated[str, Field(max_length=1024)]
Tokens = Annotated[int, Field(ge=1, le=LARGEST)]
Bias = Annotated[float, Field(ge=-100, le=100)]


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_and_given(cls, value: Any) -> Any:
        """Without what is null, which means absent, and with no more than one unknown parameter: one is an error."""
        if not isinstance(value, dict):
            return value
        unknown = [key for key, given in value.items() if key not in cls.model_fields and given is not None][:1]
        return {key: value[key] for key in [*cls.model_fields, *unknown] if value.get(key) is not None}


class StreamOptions(_Object):
    """Usage stands in the last chunk of every stream, asked for or not."""

    include_usage: bool = False


class Parameters(_Object):
    """What all endpoints understand."""

    model: Name
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    frequency_penalty: float = Field(0.0, ge=0, le=2)
    logit_bias: dict[Annotated[int, Field(strict=False, ge=0, le=LARGEST)], Bias] = {}
    stop: list[Annotated[str, Field(min_length=1, max_length=STOP_CHARACTERS)]] = Field([], max_length=STOPS)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    user: str = ""
    n: int = Field(1, ge=1, le=CHOICES)
    presence_penalty: float = Field(0.0, ge=0, le=0)

    @property
    def is_plain_sampling(self) -> bool:
        """Whether the text is to be a sample of just what the model says."""
        return self.temperature == self.top_p == 1 and not self.frequency_penalty and not self.logit_bias

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _few_biases(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > BIASES:  # pydantic would look at each one first
            raise ValueError(f"at most {BIASES} tokens can be biased")
        return value


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and value != [] and all(type(i) is int and 0 <= i <= LARGEST for i in value)


class CompletionRequest(Parameters):
    """The body of ``POST /v1/completions``.

    ``prompt`` is always a list here: of texts and of token IDs.
    """

    prompt: list[Any] = [""]
    max_tokens: Annotated[int, Field(ge=0, le=LARGEST)] | None = None
    best_of: int | None = None
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=COMPLETION_LOGPROBS)

    @field_validator("prompt", mode="before")
    @classmethod
    def _several_prompts(cls, value: Any) -> list[Any]:
        prompts = value if isinstance(value, list) and not _are_ids(value) else [value]
        if not prompts or not all(isinstance(prompt, str) or _are_ids(prompt) for prompt in prompts):
            raise ValueError("give a text, the IDs of its tokens, or a list of texts or of lists of IDs")
        return prompts

    @field_validator("best_of")
    @classmethod
    def _all_of_them(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value not in (None, info.data.get("n")):
            raise ValueError("as many texts are written as are told: leave it out, or let it be n")
        return value


class Message(_Object):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str
    name: Name | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _text_of_parts(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        texts = [part["text"] for part in value if isinstance(part, dict) and isinstance(part.get("text"), str)]
        return "\n".join(texts) if len(texts) == len(value) else value


class ChatRequest(Parameters):
    """The body of ``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1, max_length=MESSAGES)
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=CHAT_LOGPROBS)

    @field_validator("top_logprobs")
    @classmethod
    def _of_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and not info.data.get("logprobs"):
            raise ValueError("it asks for alternatives, which need logprobs to be true")
        return value


class PlayRequest(Parameters):
    """The body of ``POST /play``: a text or a conversation, and of the answer what has been written already.

    Attributes:
        tokens: the IDs of the answer's first tokens: written before, or put there.
        known: so many of them are not told again.
        top: alternatives to each token, the model's and each expert's.
    """

    prompt: str = ""
    messages: list[Message] = Field([], max_length=MESSAGES)
    tokens: list[Annotated[int, Field(ge=0, le=LARGEST)]] = []
    known: int = Field(0, ge=0)
    max_tokens: Annotated[int, Field(ge=0, le=LARGEST)] | None = None
    echo: bool = False
    top: int = Field(5, ge=0, le=CHAT_LOGPROBS)

    @field_validator("messages")
    @classmethod
    def _instead_of_a_prompt(cls, value: list[Message], info: ValidationInfo) -> list[Message]:
        if value and info.data.get("prompt"):
            raise ValueError("give a prompt or messages, not both")
        return value

    @field_validator("known")
    @classmethod
    def _among_the_tokens(cls, value: int, info: ValidationInfo) -> int:
        if value > (given := len(info.data.get("tokens", ()))):
            raise ValueError(f"{given} tokens were given")
        return value


Asked = TypeVar("Asked", bound=Parameters)


def parse(kind: type[Asked], body: bytes) -> Asked:
    """The request in a body.

    Raises:
        ApiError: 400, the body is not JSON, or a parameter is unknown, missing, of the wrong type or out of range.
    """
    try:
        return kind.model_validate(from_json(body, allow_inf_nan=False))
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        param = ".".join(map(str, wrong["loc"]))[:100] or None
        if wrong["type"] == "extra_forbidden":
            raise ApiError(400, f"Unsupported parameter: '{param}'.", "unsupported_parameter", param) from None
        if wrong["type"] == "missing":
            raise ApiError(
                400, f"Missing required parameter: '{param}'.", "missing_required_parameter", param
            ) from None
        where = f"Invalid value for '{param}': " if param else ""
        raise ApiError(400, f"{where}{wrong['msg']}.", "invalid_value" if param else None, param) from None
    except ValueError as error:
        raise ApiError(400, f"The body is not JSON: {error}.") from None
