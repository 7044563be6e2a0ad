"""The layout is the paper's, ID by ID."""

from __future__ import annotations

import json

import pytest
from transformers import PreTrainedTokenizerFast

from treering.errors import TreeringError
from treering.tokenizer import train
from treering.tokenizer.layout import COMPACT_MINIMUM, is_reserved, lay_out, layout_of

PAPERS_SPECIAL_TOKENS = """
<pad> <s> </s> <unk> <think> </think> <emotions> </emotions> <tool_call> </tool_call> <tool_response>
</tool_response> [INST] [/INST] [EOT] [USER] [ASSISTANT] [FIM_PREFIX] [FIM_MIDDLE] [FIM_SUFFIX] [FIM_PAD]
[REPO_NAME] [FILE_SEP]
""".split()  # noqa: SIM905 — to be read beside the paper


def by_id(tokenizer: PreTrainedTokenizerFast) -> dict[int, str]:
    return {i: token for token, i in tokenizer.get_vocab().items()}


def test_each_code_point_stands_at_its_own_id(unicode_tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = by_id(unicode_tokenizer)
    assert sorted(tokens) == list(range(65_536))
    for code in [*range(0xD800), *range(0xF900, 0xFFFF)]:
        assert tokens[code] == chr(code)
    assert unicode_tokenizer.convert_tokens_to_ids("я") == 0x44F
    assert tokens[0xFFFF] == "<unused_65535>"


def test_special_tokens_bytes_and_unused(unicode_tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = by_id(unicode_tokenizer)
    assert [tokens[0xE000 + i] for i in range(23)] == PAPERS_SPECIAL_TOKENS
    assert [tokens[0xE017 + i] for i in range(105)] == [f"<unused_{0xE017 + i}>" for i in range(105)]
    assert [tokens[0xE080 + i] for i in range(128)] == [f"<0x{128 + i:02X}>" for i in range(128)]
    assert unicode_tokenizer.pad_token_id == 0xE000
    assert unicode_tokenizer.bos_token_id == unicode_tokenizer.eos_token_id == 0xE002
    assert unicode_tokenizer.eos_token_id == 0xE002
    assert unicode_tokenizer.unk_token_id == 0xE003
    assert sorted(unicode_tokenizer.added_tokens_decoder) == [0xE000 + i for i in range(23)]


def test_ngrams_stand_longest_first_then_by_code_point(
    unicode_tokenizer: PreTrainedTokenizerFast, paper_tokenizer: PreTrainedTokenizerFast
) -> None:
    free = [*range(0xD800, 0xE000), *range(0xE100, 0xF900)]
    for tokenizer, ids in (
        (unicode_tokenizer, free),
        (paper_tokenizer, free),
        (paper_tokenizer, range(65_536, 70_000)),
    ):
        tokens = by_id(tokenizer)
        ngrams = [tokens[i] for i in ids if not tokens[i].startswith("<unused_")]
        assert len(ngrams) > 1_000
        assert ngrams == sorted(ngrams, key=lambda token: (-len(token), [ord(c) for c in token]))
        unused = [i for i in ids if tokens[i].startswith("<unused_")]
        assert unused == list(ids)[len(ngrams) :]
        assert [tokens[i] for i in unused] == [f"<unused_{i}>" for i in unused]


def test_the_papers_ngrams_have_the_papers_lengths(paper_tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = by_id(paper_tokenizer)
    low = {len(tokens[i]) for i in range(0xD800, 0xE000)}
    high = {len(tokens[i]) for i in range(65_536, 70_000) if not tokens[i].startswith("<unused_")}
    assert low <= {2, 3}
    assert high <= {2, 3, 4, 5} and {4, 5} <= high


def test_a_frequent_character_of_another_plane_earns_an_id(
    unicode_tokenizer: PreTrainedTokenizerFast, compact_tokenizer: PreTrainedTokenizerFast
) -> None:
    for tokenizer in (unicode_tokenizer, compact_tokenizer):
        assert "😀" in tokenizer.get_vocab() and "\U00010330" in tokenizer.get_vocab()
        assert tokenizer.tokenize("🦓") == ["<0xF0>", "<0x9F>", "<0xA6>", "<0x93>"]


def test_the_compact_layout(compact_tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = by_id(compact_tokenizer)
    assert sorted(tokens) == list(range(1_500))
    assert [tokens[i] for i in range(23)] == PAPERS_SPECIAL_TOKENS
    assert [tokens[23 + i] for i in range(128)] == [chr(i) for i in range(128)]
    assert [tokens[151 + i] for i in range(128)] == [f"<0x{128 + i:02X}>" for i in range(128)]
    rest = [tokens[i] for i in range(279, 1_500)]
    assert rest == sorted(rest, key=lambda token: (len(token) > 1, -len(token), token))
    assert {"я", "的", "😀"} < set(rest)


@pytest.mark.parametrize("vocab_size", [279, 280, 281, 65_536, 65_537])
def test_any_size_is_met_exactly(vocab_size: int) -> None:
    tokenizer = train({"": ["абаб"]}, vocab_size)
    assert sorted(tokenizer.get_vocab().values()) == list(range(vocab_size))
    assert tokenizer.decode(tokenizer.encode("абаб, ok")) == "абаб, ok"


def test_layout_of_recognises_only_its_own(
    unicode_tokenizer: PreTrainedTokenizerFast, compact_tokenizer: PreTrainedTokenizerFast
) -> None:
    assert layout_of(unicode_tokenizer.get_vocab()) == "unicode"
    assert layout_of(compact_tokenizer.get_vocab()) == "compact"
    assert layout_of({"a": 0}) is None


def test_a_larger_unicode_vocabulary_continues_the_smaller_one(
    corpus: dict[str, list[str]], unicode_tokenizer: PreTrainedTokenizerFast
) -> None:
    larger = by_id(train(corpus, 66_000))
    assert all(larger[i] == token for i, token in by_id(unicode_tokenizer).items())


@pytest.mark.parametrize("name", ["<pad>", "[/INST]", "<0x41>", "<0x\n>", "<0x+5>", "<unused_7>"])
def test_reserved_names(name: str) -> None:
    assert is_reserved(name)
    assert not is_reserved(name[:-1])


def test_names_are_never_made_of_text(tokenizer: PreTrainedTokenizerFast) -> None:
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    assert merges and not any(is_reserved(left + right) for left, right in merges)


def test_lay_out_fills_what_is_left() -> None:
    vocabulary = lay_out("compact", COMPACT_MINIMUM + 4, ["é", "ab", "abc"])
    assert {t: i for t, i in vocabulary.items() if i >= COMPACT_MINIMUM} == {
        "é": 279,
        "abc": 280,
        "ab": 281,
        "<unused_282>": 282,
    }


@pytest.mark.parametrize(
    ("vocab_size", "options", "message"),
    [
        (278, {}, "needs 279 tokens"),
        (0, {}, "too small"),
        (-5, {}, "too small"),
        (65_535, {"layout": "unicode"}, "65,536 tokens or more"),
        (4_096, {"layout": "paper"}, "no layout 'paper'"),
        (4_096, {"merges": "longest"}, "no merge order 'longest'"),
        (4_096, {"max_length": 1}, "at least 2"),
    ],
)
def test_what_cannot_be_is_refused(vocab_size: int, options: dict[str, str], message: str) -> None:
    with pytest.raises(TreeringError, match=message):
        train({"en": ["text"]}, vocab_size, **options)  # type: ignore[arg-type]
