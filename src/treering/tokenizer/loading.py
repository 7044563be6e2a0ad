"""Any Hugging Face tokenizer: load it, name it, encode with it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence

from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from treering.errors import TreeringError
from treering.location import locate


def load(name_or_path: str | os.PathLike[str]) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer from a directory or from the hub.

    Raises:
        TreeringError: there is no tokenizer, it cannot be read, or it has no fast (Rust) form.
    """
    place = locate(name_or_path, "tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
        if type(tokenizer) is not PreTrainedTokenizerFast and _is_plain(place):
            # Beside a config.json of some families (qwen2, phi3 …) AutoTokenizer rebuilds the family's own
            # tokenizer out of this one's vocabulary, and text no longer comes back.
            tokenizer = PreTrainedTokenizerFast.from_pretrained(place)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError … for one and the same cause
        raise TreeringError(
            f"No tokenizer could be loaded from {name_or_path}: {error}\n"
            "Give a directory that holds tokenizer.json, or hub:NAME."
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise TreeringError(
            f"The tokenizer of {name_or_path} is a {type(tokenizer).__name__}, which has no tokenizer.json; "
            "convert it to a fast tokenizer first."
        )
    return tokenizer


def _is_plain(name_or_path: str) -> bool:
    """Whether a tokenizer says of itself that tokenizer.json is all there is to it."""
    declared = get_tokenizer_config(name_or_path).get("tokenizer_class")
    return declared in ("PreTrainedTokenizerFast", "TokenizersBackend")


def identity(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 (hex) of what decides which IDs a text becomes: tokens by ID, special tokens, merges in order.

    Names, templates and padding settings do not count, nor does the version of the library that wrote the
    file.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [" ".join(m) if isinstance(m, list) else m for m in model.get("merges") or []]
    special = sorted(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    tokens = sorted((i, token) for token, i in tokenizer.get_vocab().items())
    canonical = json.dumps([tokens, special, merges], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Token IDs of each text, nothing added; special-token strings in a text are ordinary characters.

    Raises:
        TreeringError: a text holds a lone surrogate, which no Unicode encoding can store.
    """
    for number, text in enumerate(texts, 1):
        require_unicode(text, f"text {number}")
    # The Rust tokenizer itself: without the bookkeeping of offsets and masks it is up to six times as fast.
    backend = tokenizer.backend_tokenizer
    before = backend.encode_special_tokens
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    try:
        ids: list[list[int]] = []
        for start in range(0, len(texts), 256):
            batch = backend.encode_batch_fast(list(texts[start : start + 256]), add_special_tokens=False)
            ids += [encoding.ids for encoding in batch]
    finally:
        backend.encode_special_tokens = before
    return ids


def require_unicode(text: str, name: str) -> None:
    """Refuse a string that is not Unicode text; ``name`` says in the message which one it is.

    Raises:
        TreeringError: ``text`` holds a lone surrogate, which no Unicode encoding can store.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TreeringError(
            f"Character {error.start} of {name} is the lone surrogate U+{ord(text[error.start]):04X}, which "
            "is not a Unicode character. Repair the text first, for instance with "
            "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')."
        ) from None


def separator(tokenizer: PreTrainedTokenizerFast) -> int:
    """The ID that stands before each document, in training as in evaluation: ``</s>``.

    Raises:
        TreeringError: the tokenizer names no end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise TreeringError(
            "The tokenizer has no end-of-text token (eos_token), which stands before each document. Name one: "
            'tokenizer.add_special_tokens({"eos_token": "</s>"}); tokenizer.save_pretrained(DIR)'
        )
    return int(tokenizer.eos_token_id)
