"""Small tokenizers of every family, made on the spot."""

from __future__ import annotations

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "Съешь ещё этих мягких французских булок, да выпей чаю.",
    "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏",
    "if x == 1:\n\treturn {'café': [0.5, 12]}\r\n",
] * 3


def fast(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture(scope="session")
def literal() -> PreTrainedTokenizerFast:
    """Characters of several scripts, look-alikes, blanks, n-grams and specials: the tokens are the text."""
    ranges = [(0x20, 0x7F), (0xA0, 0x100), (0x391, 0x3CA), (0x410, 0x450), (0x4E00, 0x4F00), (0xAC00, 0xAC80)]
    tokens = [chr(code) for low, high in ranges for code in range(low, high)]
    tokens += [
        "<unk>",
        "</s>",
        "ing",
        " the",
        "ение",
        "不同",
        "\u3000",
        "😀",
        "🦊",
        "<0x80>",
        "<unused_7>",
        "\n",
    ]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return fast(Tokenizer(models.BPE(vocabulary, [])), unk_token="<unk>", eos_token="</s>")


@pytest.fixture(scope="session")
def byte_level() -> PreTrainedTokenizerFast:
    """GPT-2's kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    )
    return fast(tokenizer, eos_token="<|endoftext|>")


@pytest.fixture(scope="session")
def split_byte_level() -> PreTrainedTokenizerFast:
    """Llama 3's and Qwen's kind: a regular expression, then bytes."""
    tokenizer = Tokenizer(models.BPE({"Ġ": 0, "a": 1, "Ġa": 2, "ä": 3, "¸": 4, "Ń": 5, "ä¸": 6, "ä¸Ń": 7}, []))
    split = pre_tokenizers.Split(Regex(r"\s+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(use_regex=False)])
    return fast(tokenizer, eos_token="<｜end▁of▁sentence｜>")


@pytest.fixture(scope="session")
def byte_fallback() -> PreTrainedTokenizerFast:
    """Llama 2's kind: SentencePiece BPE with ``▁`` and byte tokens."""
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"abcdefgh",
        "▁a",
        "▁ab",
    ]
    merges = [("▁", "a"), ("▁a", "b")]
    model = models.BPE({token: i for i, token in enumerate(tokens)}, merges, byte_fallback=True, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return fast(tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def unigram() -> PreTrainedTokenizerFast:
    """T5's kind."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return fast(tokenizer, unk_token="<unk>")


@pytest.fixture(scope="session")
def wordpiece() -> PreTrainedTokenizerFast:
    """BERT's kind."""
    tokens = ["[UNK]", "[CLS]", "play", "ing", "##ing", "##s", "##", "#"]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return fast(tokenizer, unk_token="[UNK]", cls_token="[CLS]")


@pytest.fixture(scope="session")
def end_of_word() -> PreTrainedTokenizerFast:
    """CLIP's kind: bytes, and a mark where a word ends."""
    tokens = {"c": 0, "at": 1, "at</w>": 2, "Ã©</w>": 3}
    tokenizer = Tokenizer(models.BPE(tokens, [], end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return fast(tokenizer)
