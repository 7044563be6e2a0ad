"""Any Hugging Face tokenizer: load it, name it, encode with it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from treering.errors import TreeringError
from treering.gguf import is_gguf, long_reading, require_gguf
from treering.location import file_of, locate
from treering.reading import printable, read_json


def load(name_or_path: str | os.PathLike[str], trust_remote_code: bool = False) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer from a directory, from the hub, or out of a GGUF file.

    Args:
        trust_remote_code: run Python code that comes with the tokenizer, of a class that transformers does not know.

    Raises:
        TreeringError: there is no tokenizer, it cannot be read, it has no fast (Rust) form, it brings code that was not
            allowed, or its IDs are far more than its tokens; of a GGUF file, see ``treering.gguf.require_gguf``.
    """
    packed = is_gguf(name_or_path)
    place = os.fspath(name_or_path) if packed else locate(name_or_path)
    try:
        if packed:
            require_gguf(place)
            with long_reading(f"the tokenizer of {Path(place).name}"):
                tokenizer = AutoTokenizer.from_pretrained(Path(place).parent, gguf_file=Path(place).name)
        else:
            _require_sound(place)
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code)
        if not packed and type(tokenizer) is not PreTrainedTokenizerFast and _is_plain(place):
            # Beside a config.json of some families (qwen2, phi3 …) AutoTokenizer rebuilds the family's own
            # tokenizer out of this one's vocabulary, and text no longer comes back.
            tokenizer = PreTrainedTokenizerFast.from_pretrained(place)
        _require_room(tokenizer.get_vocab().values(), place)
    except (TreeringError, KeyboardInterrupt, SystemExit):
        raise
    # transformers raises OSError, ValueError, KeyError … for one and the same cause, and what the tokenizer's Rust code
    # raises where it gives up is no Exception.
    except BaseException as error:
        told = "\n".join(printable(line, 500) for line in str(error).splitlines()[:20])
        flag = "\nTreering's flag for that is --trust-remote-code." if "trust_remote_code" in told else ""
        raise TreeringError(
            f"No tokenizer could be loaded from {printable(os.fspath(name_or_path))}: {told}\n"
            f"Give a directory that holds tokenizer.json, hub:NAME, or FILE.gguf.{flag}"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise TreeringError(
            f"The tokenizer of {name_or_path} is a {type(tokenizer).__name__}, which has no tokenizer.json; "
            "convert it to a fast tokenizer first."
        )
    return tokenizer


def _require_sound(place: str) -> None:
    """Refuse a tokenizer by its files, before anything as long as its highest ID is made, or any of it is shown.

    Raises:
        TreeringError: a file is damaged, or see `_require_room`.
    """
    if settings := file_of(place, "tokenizer_config.json"):
        _require_printable_fields(read_json(settings), settings)
    for name in ("tokenizer.json", "vocab.json"):
        if (path := file_of(place, name)) is None:
            continue
        values = read_json(path)
        if not isinstance(values, dict):
            raise TreeringError(f"{path} is damaged: it is no tokenizer. Copy it again from where it came from.")
        model = values.get("model")
        vocabulary = model.get("vocab") if isinstance(model, dict) else values if name == "vocab.json" else None
        if isinstance(vocabulary, dict):
            _require_room(vocabulary.values(), place)


def _require_printable_fields(values: Any, path: Path) -> None:
    """Refuse names of fields that a terminal would obey: the tokenizer's Rust code prints those it does not know."""
    level = [values]
    while level:
        for name in (name for value in level if isinstance(value, dict) for name in value):
            if not name.isprintable():
                raise TreeringError(f"{path} is damaged: it has a field {printable(name)}. Copy it again.")
        containers = [value for value in level if isinstance(value, dict | list)]
        level = [below for value in containers for below in (value.values() if isinstance(value, dict) else value)]


def _require_room(ids: Collection[Any], place: str) -> None:
    """Refuse IDs so high that tables of all of them would hold little else than gaps.

    Raises:
        TreeringError: there is one; names it.
    """
    most = 4 * len(ids) + 65_536
    highest = max((number for number in ids if isinstance(number, int)), default=0)
    if highest > most:
        raise TreeringError(
            f"The tokenizer of {printable(place)} gives one of its {len(ids):,} tokens the ID {highest:,}. Models have "
            f"a row for each number up to that, so IDs above {most:,} are refused: it is damaged; copy it again."
        )


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
