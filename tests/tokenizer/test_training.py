"""Every string comes back; the encoder is plain byte-pair encoding; training is deterministic."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, trainers
from transformers import (
    AutoTokenizer,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from treering.errors import TreeringError
from treering.tokenizer import characters_per_token, encode, identity, load, save, train
from treering.tokenizer.layout import SPECIAL_TOKENS
from treering.tokenizer.mining import count_made, splitter
from treering.tokenizer.sources import in_equal_shares, survey

# fmt: off
AWKWARD = [
    "", "\0", " ", "\n", "\r", "\r\n", "\n\r", "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029", "\ufeff", "\ufffd",
    "\ufffe", "\uffff", "e\u0301\u0323", "\u0301", "👩‍👩‍👧‍👦", "👍🏽", "🇺🇦🇨🇳", "\U0010ffff", "\ue000\uf8ff",
    "\ufdd0", "ﬁ \u212b \u00c5 ｆｕｌｌ", "می\u200cخواهم", "क्षत्रिय", "ประเทศไทย", "İstanbul ß ẞ",
    "  two  spaces ", "don't n't 's .", "\t\t", "a\u00a0b", "\u200b\u200d\u202e", "▁▁", "Ġa Ċ", "##a", "</w>",
    "<0x41>", "<0xF0><0x9F>", "<0x80>", "<unused_7>", "<unused_57367>", "<|endoftext|>", "1234 １２３ ٣٤ ½",
    *SPECIAL_TOKENS,
]
# fmt: on
PIECES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from(AWKWARD),
    st.text("аб好的ab \n\r<>0x[]/s", max_size=8),
)
TEXTS = st.lists(PIECES, max_size=6).map("".join)
TOKENIZERS = ("unicode_tokenizer", "compact_tokenizer", "paper_tokenizer", "compact_paper_tokenizer")
MANY = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@given(TEXTS)
@MANY
def test_every_string_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    (ids,) = encode(tokenizer, [text])
    assert tokenizer(text)["input_ids"] == tokenizer.encode(text) == ids
    for skip in (False, True):
        for clean in (None, False):
            assert tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=clean) == text
    assert not set(ids) & set(tokenizer.added_tokens_decoder)


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_strings_come_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    for string in (text, text * 3, f"a{text}б", f" {text}\n"):
        assert tokenizer.batch_decode(encode(tokenizer, [string]), skip_special_tokens=True) == [string]


def test_every_code_point_comes_back(tokenizer: PreTrainedTokenizerFast) -> None:
    codes = [*range(0xD800), *range(0xE000, 0x110000, 7), *range(0xE000, 0x10100), 0x10FFFF]
    text = "".join(map(chr, codes))
    (ids,) = encode(tokenizer, [text])
    assert tokenizer.decode(ids) == text


def brute_force(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    """Byte-pair encoding as in the textbook: the best merge, leftmost first, again and again."""
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    ranks = {tuple(merge): rank for rank, merge in enumerate(merges)}
    vocabulary = tokenizer.get_vocab()
    tokens = []
    for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text):
        symbols = []
        for character in piece:
            symbols += [character] if character in vocabulary else [f"<0x{b:02X}>" for b in character.encode()]
        while found := [(ranks[p], i) for i, p in enumerate(pairwise(symbols)) if p in ranks]:
            i = min(found)[1]
            symbols[i : i + 2] = ["".join(symbols[i : i + 2])]
        tokens += symbols
    return tokens


@given(st.data())
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_encoder_is_textbook_bpe(
    tokenizer: PreTrainedTokenizerFast, corpus: dict[str, list[str]], data: st.DataObject
) -> None:
    page = data.draw(st.sampled_from(corpus["ru"] + corpus["zh"] + corpus["en"]))
    start = data.draw(st.integers(0, max(0, len(page) - 200)))
    text = page[start : start + 200] + data.draw(TEXTS)
    assert tokenizer.tokenize(text) == brute_force(tokenizer, text)


def test_autotokenizer_loads_them_without_treering(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    text = "Привет</s> 你好 <pad>😀\r\n\0"
    expected = {}
    for name in TOKENIZERS:
        tokenizer = request.getfixturevalue(name)
        save(tokenizer, tmp_path / name)
        config = json.loads((tmp_path / name / "tokenizer_config.json").read_text())
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
        expected[name] = encode(tokenizer, [text])[0]
    program = (
        "import json, sys; sys.modules['treering'] = None\n"
        "from transformers import AutoTokenizer\n"
        "found = {}\n"
        f"for name in {TOKENIZERS!r}:\n"
        "    tokenizer = AutoTokenizer.from_pretrained(name)\n"
        f"    found[name] = tokenizer({text!r})['input_ids']\n"
        f"    assert tokenizer.decode(found[name], skip_special_tokens=True) == {text!r}\n"
        "    assert tokenizer.split_special_tokens and tokenizer.eos_token == '</s>'\n"
        "print(json.dumps(found))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(done.stdout) == expected


def test_saving_and_loading_keeps_the_identity(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    save(tokenizer, tmp_path / "a")
    loaded = load(tmp_path / "a")
    loaded.save_pretrained(tmp_path / "b")
    assert identity(tokenizer) == identity(loaded) == identity(load(tmp_path / "b"))
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()


@pytest.mark.parametrize("config", [GPTNeoXConfig, LlamaConfig, Qwen2Config, Qwen3Config])
def test_a_model_config_beside_it_changes_nothing(
    config: type[PreTrainedConfig], compact_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save(compact_tokenizer, tmp_path)
    config().save_pretrained(tmp_path)
    text = "Привет, 世界 e\u0301 😀  x\r\n"
    ids = encode(load(tmp_path), [text])
    assert ids == encode(compact_tokenizer, [text])
    assert load(tmp_path).decode(ids[0]) == text


def test_special_tokens_are_text_unless_asked_for(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    save(tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.eos_token_id not in loaded.encode("end</s>")
    assert loaded.encode("end</s>", split_special_tokens=False)[-1] == loaded.eos_token_id
    assert loaded.encode("[INST]x[/INST]", split_special_tokens=False) == loaded.convert_tokens_to_ids(
        ["[INST]", "x", "[/INST]"]
    )
    ids = [*loaded.encode("end"), loaded.eos_token_id]
    assert loaded.decode(ids) == "end</s>"
    assert loaded.decode(ids, skip_special_tokens=True) == "end"


def test_special_token_strings_in_the_corpus_give_no_way_to_forge_them() -> None:
    forged = "".join(SPECIAL_TOKENS) * 50
    for options in ({}, {"merges": "longest-first"}):
        tokenizer = train({"zh": [forged + "的" * 9_000]}, 70_000, **options)  # type: ignore[arg-type]
        (ids,) = encode(tokenizer, [forged])
        assert not set(ids) & set(tokenizer.added_tokens_decoder)
        assert tokenizer.decode(ids, skip_special_tokens=True) == forged


def test_the_default_makes_fewer_tokens_than_the_papers_order(corpus: dict[str, list[str]]) -> None:
    shown = {name: texts[::2] for name, texts in corpus.items()}
    for vocab_size in (1_500, 65_536, 70_000):
        ours = train(shown, vocab_size)
        paper = train(shown, vocab_size, merges="longest-first")
        for texts in corpus.values():
            assert characters_per_token(ours, texts[1::2]) > characters_per_token(paper, texts[1::2])


def test_training_is_deterministic(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from itertools import islice\n"
        "from treering.corpus import embedded, read_documents\n"
        "from treering.tokenizer import save, train\n"
        "texts = {l: [d.text for d in islice(read_documents(embedded(l)), 60)] for l in ('ru', 'zh')}\n"
        "for merges in ('bpe', 'longest-first'):\n"
        "    save(train(texts, 1200, merges=merges), f'{sys.argv[1]}/{merges}')\n"
    )
    files = []
    for seed, threads, parallel in (("1", "1", "false"), ("2", "2", "true")):
        settings = {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": parallel}
        target = tmp_path / seed
        command = [sys.executable, "-c", program, os.fspath(target)]
        subprocess.run(command, check=True, env=os.environ | settings)
        files.append({p.relative_to(target): p.read_bytes() for p in target.rglob("*.json")})
    assert len(files[0]) == 4 and files[0] == files[1]


def test_how_often_a_token_is_made_is_counted_exactly(corpus: dict[str, list[str]]) -> None:
    sources = survey({"en": corpus["en"][:3], "zh": corpus["zh"][:3]})
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = splitter(r"\s")
    trained.train_from_iterator(in_equal_shares(sources), trainers.BpeTrainer(vocab_size=900, show_progress=False))
    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    expected: Counter[str] = Counter()
    for text in in_equal_shares(sources):
        expected.update(text)
        for piece, _ in trained.pre_tokenizer.pre_tokenize_str(text):
            symbols = list(piece)
            while found := [(ranks[p], i) for i, p in enumerate(pairwise(symbols)) if p in ranks]:
                i = min(found)[1]
                symbols[i : i + 2] = ["".join(symbols[i : i + 2])]
                expected[symbols[i]] += 1
    assert count_made(trained, merges, sources) == {token: expected[token] for token in trained.get_vocab()}


def test_a_small_source_has_an_equal_say() -> None:
    sources = survey({"large": ["ab" * 50] * 70, "small": ["яю" * 40, "эъ" * 10], "one": ["x" * 3_001]})
    shares = Counter("".join(in_equal_shares(sources)))
    assert shares["a"] + shares["b"] == 7_000
    assert abs(shares["я"] + shares["ю"] + shares["э"] + shares["ъ"] - 7_000) <= 80
    assert shares["x"] == 6_002
    texts = {"large": ["the cat sat on the mat "] * 500, "small": ["кот сидел на ковре "]}
    assert train(texts, 340).tokenize("кот сидел на ковре") == ["кот", " сидел", " на", " ковре"]


def test_a_generator_serves_as_a_list_does(corpus: dict[str, list[str]]) -> None:
    once = {name: (text for text in texts[:9]) for name, texts in corpus.items()}
    assert identity(train(once, 600)) == identity(train({n: t[:9] for n, t in corpus.items()}, 600))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({}, "by source"),
        (["text"], "by source"),
        ({"en": "text"}, "'en' is one string"),
        ({"en": ["text"], "ru": []}, "'ru' holds no text"),
        ({"en": ["", ""]}, "'en' holds no text"),
        ({"en": ["a", 7]}, "Text 2 of source 'en' is a int"),
        ({"en": ["a", "bc\ud800d"]}, r"Character 2 of text 2 of source 'en' is the lone surrogate U\+D800"),
        ({"en": iter(["a", "\udfff"])}, r"U\+DFFF"),
    ],
)
def test_texts_that_cannot_be_trained_on(texts: object, message: str) -> None:
    for merges in ("bpe", "longest-first"):
        with pytest.raises(TreeringError, match=message):
            train(texts, 300, merges=merges)  # type: ignore[arg-type]
        if not isinstance(texts, dict) or any(hasattr(t, "__next__") for t in texts.values()):
            break


def test_lone_surrogates_are_a_clear_error(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(TreeringError, match=r"Character 1 of text 2 is the lone surrogate U\+DC80"):
        encode(tokenizer, ["fine", "a\udc80"])
    with pytest.raises(TypeError):  # what AutoTokenizer alone says; nothing is lost silently
        tokenizer("a\udc80")


@pytest.mark.parametrize("text", ["a", " ", "\n", "中", "😀", "\u0301", "- ", "1", "ab", " x", "\0"])
def test_long_runs_are_exact(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    run = text * 20_000 + "x"
    (ids,) = encode(tokenizer, [run])
    assert tokenizer.decode(ids) == run


def test_a_run_of_spaces_past_the_regex_engines_limit(compact_tokenizer: PreTrainedTokenizerFast) -> None:
    pieces = compact_tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(" " * 11_000_000 + "x")
    assert sum(end - start for _, (start, end) in pieces) == 11_000_001


def test_encoding_leaves_the_tokenizer_as_it_was(compact_tokenizer: PreTrainedTokenizerFast) -> None:
    texts = ["a </s>", "слово " * 50] * 150
    cut = compact_tokenizer(texts, truncation=True, max_length=3, padding=True, split_special_tokens=False)
    whole = encode(compact_tokenizer, texts)
    assert compact_tokenizer.batch_decode(whole) == texts
    again = compact_tokenizer(texts, truncation=True, max_length=3, padding=True, split_special_tokens=False)
    assert again["input_ids"] == cut["input_ids"]
    assert encode(compact_tokenizer, []) == []
