"""Any Hugging Face tokenizer: load it, name it, encode with it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from treering.errors import TreeringError


def load(name_or_path: str | os.PathLike[str]) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer from a directory or from the hub.

    Raises:
        TreeringError: there is no tokenizer, it cannot be read, or it has no fast (Rust) form.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(os.fspath(name_or_path))
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, JSONDecodeError … for one cause
        raise TreeringError(
            f"No tokenizer could be loaded from {name_or_path}: {error}\n"
            "Give a directory that holds tokenizer.json, or a name on the Hugging Face hub."
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise TreeringError(
            f"The tokenizer of {name_or_path} is a {type(tokenizer).__name__}, which has no tokenizer.json; "
            "convert it to a fast tokenizer first."
        )
    return tokenizer


def identity(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 (hex) of what decides which IDs a text becomes: tokens by ID, special tokens, merges in order.

    Names, templates and padding settings do not count, nor does the version of the library that wrote the file.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [" ".join(m) if isinstance(m, list) else m for m in model.get("merges") or []]
    special = sorted(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    tokens = sorted((i, token) for token, i in tokenizer.get_vocab().items())
    canonical = json.dumps([tokens, special, merges], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Token IDs of each text, no special tokens added; special-token strings in a text are ordinary characters.

    Raises:
        TreeringError: a text holds a lone surrogate, which no Unicode encoding can store.
    """
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TreeringError(
                f"Character {error.start} of a text is the lone surrogate U+{ord(text[error.start]):04X}, which is not "
                "a Unicode character. Repair the text first, for instance with "
                "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')."
            ) from None
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
