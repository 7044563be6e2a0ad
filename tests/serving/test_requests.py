"""Bodies of requests, whatever is in them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treering.serving.errors import ApiError
from treering.serving.reading import require_tokens
from treering.serving.requests import ChatRequest, CompletionRequest, parse
from treering.serving.writing import generation_config

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 3)
    | st.floats(-3, 3)
    | st.floats()
    | st.text(max_size=5)
)
KEYS = st.integers(0, 900).map(str) | st.text(max_size=5) | st.sampled_from(["role", "content", "text", "type"])
JSON = st.recursive(SCALARS, lambda v: st.lists(v, max_size=5) | st.dictionaries(KEYS, v, max_size=5), max_leaves=12)
NAMES = sorted({*CompletionRequest.model_fields, *ChatRequest.model_fields})
FINE = {"model": "joined", "prompt": "x", "messages": [{"role": "user", "content": "x"}]}


def attempt(model, tokenizer, kind, body: bytes) -> None:
    """Parse a body, and go on as far as to what transformers would be asked; only OpenAI's errors are raised."""

    try:
        asked = parse(kind, body)
        require_tokens(model, asked.logit_bias, "logit_bias")
        config = generation_config(model, tokenizer, asked, asked.max_tokens or 1)
    except ApiError as error:
        assert error.status == 400
        json.dumps(error.body()).encode()
    else:
        config.validate(strict=True)


@pytest.mark.parametrize("kind", [CompletionRequest, ChatRequest])
def test_any_json_is_a_request_or_refused(model, tokenizer, kind):
    fine = {name: value for name, value in FINE.items() if name in kind.model_fields}

    @settings(max_examples=150, deadline=None)
    @given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), JSON, max_size=4) | JSON)
    def run(value) -> None:
        attempt(model, tokenizer, kind, json.dumps(fine | value if isinstance(value, dict) else value).encode())

    run()


@pytest.mark.parametrize("kind", [CompletionRequest, ChatRequest])
def test_any_bytes_are_a_request_or_refused(model, tokenizer, kind):
    @settings(max_examples=150, deadline=None)
    @given(st.binary(max_size=60), st.integers(0, 100), st.integers(0, 20))
    def run(middle: bytes, start: int, length: int) -> None:
        fine = json.dumps({**FINE, "stop": ["a"], "logit_bias": {"5": 1.5}}).encode()
        attempt(model, tokenizer, kind, fine[:start] + middle + fine[start + length :])

    run()
