"""What a client may ask for: OpenAI's parameters, with OpenAI's defaults.

A parameter that is not here is refused, and so is a value that the server could only ignore: nobody gets another text
than the one asked for. Values that change nothing (``n=1``) are accepted, because clients send them unasked.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from treering.serving.errors import ApiError


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_means_absent(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


class StreamOptions(_Object):
    """Usage stands in the last chunk of every stream, asked for or not."""

    include_usage: bool = False


class Parameters(_Object):
    """What both endpoints understand."""

    model: str
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    frequency_penalty: float = Field(0.0, ge=0, le=2)
    logit_bias: dict[Annotated[int, Field(strict=False, ge=0)], Annotated[float, Field(ge=-100, le=100)]] = {}
    stop: list[Annotated[str, Field(min_length=1)]] = []
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    user: str = ""
    n: Literal[1] = 1
    presence_penalty: float = Field(0.0, ge=0, le=0)

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class CompletionRequest(Parameters):
    """The body of ``POST /v1/completions``."""

    prompt: str = ""
    best_of: Literal[1] = 1
    echo: Literal[False] = False

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_prompt(cls, value: Any) -> Any:
        return value[0] if isinstance(value, list) and len(value) == 1 else value


class Message(_Object):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str
    name: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _text_of_parts(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        texts = [part["text"] for part in value if isinstance(part, dict) and isinstance(part.get("text"), str)]
        return "\n".join(texts) if len(texts) == len(value) else value


class ChatRequest(Parameters):
    """The body of ``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Literal[False] = False


Asked = TypeVar("Asked", bound=Parameters)


def parse(kind: type[Asked], body: bytes) -> Asked:
    """The request in a body.

    Raises:
        ApiError: 400, the body is not JSON, or a parameter is unknown, missing, of the wrong type or out of range.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        param = ".".join(map(str, wrong["loc"])) or None
        if wrong["type"] == "extra_forbidden":
            raise ApiError(400, f"Unsupported parameter: '{param}'.", "unsupported_parameter", param) from None
        if wrong["type"] == "missing":
            raise ApiError(
                400, f"Missing required parameter: '{param}'.", "missing_required_parameter", param
            ) from None
        where = f"Invalid value for '{param}': " if param else ""
        raise ApiError(400, f"{where}{wrong['msg']}.", "invalid_value" if param else None, param) from None
