from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from treering.tokenizer import characters_per_token, describe, identity


def test_counts_add_up(tokenizer: PreTrainedTokenizerFast) -> None:
    told = describe(tokenizer)
    assert told.layout in ("unicode", "compact")
    assert told.bytes is not None and told.characters is not None and told.ngrams is not None
    assert told.unused is not None
    total = told.special + told.bytes + told.characters + sum(told.ngrams.values()) + told.unused
    assert total == told.vocab_size == len(tokenizer)
    assert told.identity == identity(tokenizer)


def test_a_foreign_tokenizer_is_said_to_be_one() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    told = describe(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]"))
    assert (told.layout, told.vocab_size, told.ngrams) == (None, 2, None)


def test_characters_per_token(compact_tokenizer: PreTrainedTokenizerFast) -> None:
    assert characters_per_token(compact_tokenizer, ["\x01\x02", "🦓"]) == pytest.approx(3 / 6)
    assert characters_per_token(compact_tokenizer, [""]) != characters_per_token(compact_tokenizer, [""])
