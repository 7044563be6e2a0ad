from __future__ import annotations

import itertools
import json
import tempfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from treering.corpus import Corpus, Source, prepare, split_of
from treering.corpus.duplicates import Cut, HeldOutParagraphs, Index, Overlap, cut, normalise
from treering.corpus.source import Split
from treering.errors import TreeringError

SHARES = {"validation": 0.2, "calibration": 0.2}
FILLER = "Каждый документ здесь начинается со своей строки, и она длиннее всего, что в нём вырезают: номер "


def plain(paragraph: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", paragraph).casefold().split())


def index(*texts: str, measured: bool = True) -> Index:
    held_out = HeldOutParagraphs(measured=measured)
    for text in texts:
        held_out.add(text)
    return Index(held_out)


def documents(corpus: Corpus, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Training documents as they stand in the blocks, but for the last one, which the remainder may have cut."""
    stream = np.concatenate([np.array(row["input_ids"]) for row in corpus.train])
    starts = np.flatnonzero(stream == tokenizer.eos_token_id)
    return [tokenizer.decode(stream[a + 1 : b]) for a, b in itertools.pairwise(starts)]


def ids_of(side: str, count: int, stem: str = "") -> list[str]:
    names = (f"{stem}{n}" for n in itertools.count())
    return list(itertools.islice((i for i in names if split_of(i, **SHARES) == side), count))


def write(path: Path, rows: Iterable[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in rows))
    return path


def filler(side: str, count: int = 4) -> list[tuple[str, str]]:
    return [(i, f"{FILLER}{i}") for i in ids_of(side, count, "filler-")]


def made(tokenizer: PreTrainedTokenizerFast, folder: Path, rows: list[tuple[str, str]], **options: Any) -> Corpus:
    """A corpus of the rows and some documents of each side that repeat nothing."""
    everything = [*rows, *filler("train"), *filler("validation"), *filler("calibration")]
    source = write(folder / "rows.jsonl", everything)
    return prepare([source], tokenizer, folder / "corpus", block_size=8, **SHARES, **options)


# ------------------------------------------------------------------------------------------ one document


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Откройте  диалог\t«Поиск»  ", " откройте диалог «поиск»"),
        ("The file is damaged", "THE FILE is\u00a0damaged"),
        ("ｆｕｌｌ ｗｉｄｔｈ\u2003ﬁles", "Full width files"),
        ("cafe\u0301 Straße", "CAFÉ STRASSE"),
        ("x" * 5_000 + "\u0301 y", "X" * 5_000 + "\u0301  Y"),
    ],
)
def test_near_duplicates_are_equal_when_normalised(one: str, other: str) -> None:
    assert normalise(one) == normalise(other) == plain(one).encode()


def test_a_long_run_of_combining_marks_takes_no_quadratic_time() -> None:
    marks = "\u0315\u0300" * 200_000  # at once: a minute and more
    assert len(normalise(f"x{marks}")) == len(f"x{marks}".encode())


def test_what_is_cut_and_what_stays() -> None:
    held_out = index("Nothing here is of use.\nNote\nThis sentence is held out.")
    kept = "A training document has more sentences of its own than it shares with any other document."
    text = f"{kept}\n\nTHIS  sentence is held out.\n\nNote\nAnd one more."
    assert cut(text, held_out).text == f"{kept}\n\nNote\nAnd one more."
    assert cut(text, held_out).paragraphs == 1
    assert cut(f"{kept}\n\nThis sentence is held out.\n", held_out).text == kept
    assert cut(text, held_out, 27).text == text  # the sentence has 26 bytes
    assert cut(text, held_out, 26).paragraphs == 1
    assert cut(text, held_out, 0).text == text


def test_a_document_that_loses_half_is_left_out() -> None:
    held_out = index("This sentence is held out.\nNote")
    for rest, stays in (("x" * 27, False), ("x" * 28, True)):
        text = f"{rest}\nThis sentence is held out."
        assert cut(text, held_out).text == (rest if stays else "")
    assert cut("This sentence is held out.", held_out) == Cut("", 0, [held_out.find(b"this sentence is held out.")], [])


def test_short_documents_that_are_held_out_whole_are_left_out() -> None:
    held_out = index("Yes", "one\ntwo\nthree", "Title\nbody")
    for text in ("Yes", "YES ", "one\n\ntwo\nThree"):
        assert cut(text, held_out).text == ""
        assert cut(text, held_out, 0).text == text
    for text in ("Title", "one\ntwo", "Yes\nYes, and no"):  # has a held-out phrase, and is no copy
        assert cut(text, held_out).text == text


def test_what_a_cut_leaves_is_compared_as_a_whole_too() -> None:
    phrases = "\n".join(f"phrase {n}" for n in range(9))
    assert cut(f"{phrases}\nThis sentence is held out.", index(phrases, "This sentence is held out.")).text == ""


def test_overlap_counts_bytes_before_and_after() -> None:
    held_out, fitted = HeldOutParagraphs(measured=True), HeldOutParagraphs(measured=False)
    held_out.add("Пример\nЭто предложение отложено.\nЭто предложение отложено.\nлишь здесь")
    fitted.add("This sentence is for calibration.")
    both = Index(held_out, fitted)
    overlap = Overlap(both)
    sentence, phrase = len("Это предложение отложено.".encode()), len("Пример".encode())
    assert overlap.paragraph_bytes == 2 * sentence + phrase + len("лишь здесь".encode())
    assert (overlap.before, overlap.after) == (0, 0)
    overlap.count(cut("Это предложение отложено.\nThis sentence is for calibration.", both))
    assert (overlap.before, overlap.after) == (2 * sentence, 0)
    overlap.count(cut("пример\nчто-то совсем другое", both))
    assert (overlap.before, overlap.after) == (2 * sentence + phrase, phrase)
    overlap.count(cut("Это предложение отложено.", both, 0))
    assert overlap.after == overlap.before


# ------------------------------------------------------------------------------------------ a whole corpus

words = st.sampled_from(
    ["да", "Note", "the file", "The  FILE", "диалог «Поиск»", "ｗｉｄｅ words", "表格 单元格", "", "  "]
)
paragraphs = st.lists(words, min_size=1, max_size=3).map(" ".join)
texts = st.lists(paragraphs, min_size=1, max_size=5).map("\n".join)
sides: st.SearchStrategy[Split] = st.sampled_from(["train", "train", "validation", "calibration"])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(sides, texts), max_size=12), st.sampled_from([1, 8, 16, 25]), st.randoms())
def test_nothing_of_length_is_on_two_sides(
    tokenizer: PreTrainedTokenizerFast, drawn: list[tuple[Split, str]], least: int, random: Any
) -> None:
    rows = [(ids_of(side, 20, f"{n}-")[0], text) for n, (side, text) in enumerate(drawn)]
    shuffled = random.sample(rows, len(rows))
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        corpus = made(tokenizer, Path(one), rows, duplicate_bytes=least)
        again = made(tokenizer, Path(other), shuffled, duplicate_bytes=least)
        trained = documents(corpus, tokenizer)
        measured, fitted = list(corpus.validation["text"]), list(corpus.calibration["text"])
        manifest = corpus.manifest
        assert sorted(measured) == sorted(again.validation["text"])
        assert sorted(fitted) == sorted(again.calibration["text"])
        assert again.manifest.overlap == manifest.overlap
        assert [s.model_dump(exclude={"files"}) for s in again.manifest.sources] == [
            s.model_dump(exclude={"files"}) for s in manifest.sources
        ]

    def long(side: list[str]) -> set[str]:
        return {p for text in side for p in map(plain, text.split("\n")) if len(p.encode()) >= least}

    assert not long(trained) & (long(measured) | long(fitted))
    assert not long(fitted) & long(measured)
    assert {text for (i, text) in rows if split_of(i, **SHARES) == "validation" and text.strip()} <= set(measured)
    assert manifest.overlap is not None
    before = {plain(p) for i, text in rows if split_of(i, **SHARES) == "train" for p in text.split("\n")}
    found = [p for text in measured for p in text.split("\n") if plain(p) and plain(p) in before]
    assert manifest.overlap.before == sum(len(p.encode()) for p in found)
    assert manifest.overlap.after <= sum(len(p.encode()) for p in found if len(plain(p).encode()) < least)


@pytest.mark.parametrize("first", ["train", "validation"])
def test_held_out_documents_may_come_before_or_after(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, first: str
) -> None:
    secret = "Эту строку никто не должен прочесть до проверки."
    one, other = ids_of("train", 1)[0], ids_of("validation", 1)[0]
    rows = [(one, f"{FILLER}\n{secret}"), (other, secret)]
    corpus = made(tokenizer, tmp_path, rows if first == "train" else rows[::-1])
    assert FILLER in documents(corpus, tokenizer)
    assert secret not in "\n".join(documents(corpus, tokenizer))
    record = corpus.manifest.sources[0]
    assert (record.cut_paragraphs, record.cut_bytes) == (1, len(f"\n{secret}".encode()))
    assert record.repeats_of_held_out == 0


def test_calibration_loses_what_is_validated_and_validation_nothing(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    shared, own = "Эта строка стоит на двух страницах сразу.", f"{FILLER}(одна)"
    ids = {side: ids_of(side, 2) for side in ("validation", "calibration", "train")}
    corpus = made(
        tokenizer,
        tmp_path,
        [
            (ids["calibration"][0], f"{own}\n{shared}"),
            (ids["calibration"][1], shared),
            (ids["validation"][0], f"{shared}\nИ ещё что-то."),
            (ids["train"][0], f"{FILLER}(и другая)\n{own}"),
        ],
    )
    assert f"{shared}\nИ ещё что-то." in corpus.validation["text"]
    assert own in corpus.calibration["text"]
    assert shared not in "\n".join(corpus.calibration["text"])
    assert own not in documents(corpus, tokenizer)
    record = corpus.manifest.sources[0]
    assert (record.calibration_cut_paragraphs, record.calibration_repeats) == (1, 1)
    assert record.calibration_cut_bytes == len(f"\n{shared}".encode()) + len(shared.encode())


def test_zero_keeps_everything(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    secret = "Эту строку никто не должен прочесть до проверки."
    rows = [(ids_of(side, 1)[0], secret) for side in ("train", "calibration", "validation")]
    corpus = made(tokenizer, tmp_path, rows, duplicate_bytes=0)
    assert secret in documents(corpus, tokenizer)
    assert secret in corpus.calibration["text"]
    overlap, record = corpus.manifest.overlap, corpus.manifest.sources[0]
    assert overlap is not None
    assert overlap.before == overlap.after == len(secret.encode())
    assert (corpus.manifest.duplicate_bytes, record.cut_bytes, record.repeats_of_held_out) == (0, 0, 0)
    with pytest.raises(TreeringError, match="duplicate_bytes is -1"):
        made(tokenizer, tmp_path, rows, duplicate_bytes=-1)


def test_documents_outside_a_part_are_held_out_too(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Two experts read one half each of an English text, and are measured on the held-out pages of both."""
    sources = [Source(path="embedded:en", part=part, limit=600) for part in ("1/2", "2/2")]
    halves = [prepare([s], tokenizer, tmp_path / str(n), block_size=64) for n, s in enumerate(sources)]
    measured = {plain(p) for half in halves for text in half.validation["text"] for p in text.split("\n")}
    for half in halves:
        trained = {plain(p) for text in documents(half, tokenizer) for p in text.split("\n")}
        assert not [p for p in trained & measured if len(p.encode()) >= 16]
        assert trained & measured  # phrases


def test_all_that_is_left_repeats_held_out_documents(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    secret = "Эту строку никто не должен прочесть до проверки."
    train, validation, calibration = (ids_of(s, 1)[0] for s in ("train", "validation", "calibration"))
    source = write(tmp_path / "a.jsonl", [(train, secret), (validation, secret)])
    with pytest.raises(TreeringError, match=r"are held out or repeat held-out ones \(1\): none is left to train on"):
        prepare([source], tokenizer, tmp_path / "c", block_size=8, **SHARES)
    source = write(tmp_path / "b.jsonl", [(calibration, secret), (validation, secret), *filler("train")])
    with pytest.raises(TreeringError, match=r"\(1 would be, but repeat validation documents\)"):
        prepare([source], tokenizer, tmp_path / "c", block_size=8, **SHARES)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("language", "before", "after"), [("ru", 0.348, 0.016), ("zh", 0.333, 0.041), ("en", 0.294, 0.035)]
)
def test_the_embedded_pages(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, language: str, before: float, after: float
) -> None:
    """A third of the held-out bytes stood word for word in training pages; phrases remain."""
    corpus = prepare([f"embedded:{language}"], tokenizer, tmp_path / "c")
    overlap, record = corpus.manifest.overlap, corpus.manifest.sources[0]
    assert overlap is not None
    assert overlap.before / overlap.paragraph_bytes == pytest.approx(before, abs=0.0005)
    assert overlap.after / overlap.paragraph_bytes < after
    assert record.cut_bytes < 0.06 * (record.cut_bytes + record.train_bytes)
