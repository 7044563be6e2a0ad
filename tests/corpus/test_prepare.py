from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from treering.corpus import (
    Corpus,
    Source,
    load_held_out,
    load_manifest,
    prepare,
    read_documents,
    require_match,
    split_of,
    tokenising,
    training_texts,
)
from treering.corpus.documents import Document
from treering.corpus.packing import write_blocks
from treering.corpus.prepared import HeldOutRecord, Manifest
from treering.errors import TreeringError
from treering.tokenizer import encode, identity, save


@pytest.fixture(scope="module")
def corpus(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    sources = [Source(path="embedded:zh", limit=300), Source(path="embedded:en", part="1/2", limit=200)]
    return prepare(sources, tokenizer, tmp_path_factory.mktemp("corpus") / "c", block_size=128)


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def wordy(path: Path, count: int, words: int = 20) -> Path:
    return lines(path, [{"id": f"{path.stem}-{n}", "text": f"{n} слово " * words} for n in range(count)])


def stream_of(corpus: Corpus) -> list[int]:
    return np.concatenate([block["input_ids"] for block in corpus.train]).tolist()


def documents_in(stream: list[int], separator: int) -> list[list[int]]:
    ends = [n for n, token in enumerate(stream) if token == separator] + [len(stream)]
    assert ends[0] == 0
    return [stream[a + 1 : b] for a, b in itertools.pairwise(ends)]


def plain(paragraph: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", paragraph).casefold().split())


def test_blocks_hold_exactly_the_training_documents(corpus: Corpus, tokenizer: PreTrainedTokenizerFast) -> None:
    pages = {"zh": Source(path="embedded:zh", limit=300), "en": Source(path="embedded:en", limit=400)}
    found = [d for source in pages.values() for d in read_documents(source)]
    held_out = [d.text for d in found if split_of(d.id) == "validation"]
    forbidden = {plain(p) for text in held_out for p in text.split("\n") if len(plain(p).encode()) >= 16}
    training = [
        *(d.text for d in read_documents(Source(path="embedded:zh", limit=300)) if split_of(d.id) == "train"),
        *(
            d.text
            for d in read_documents(Source(path="embedded:en", part="1/2", limit=200))
            if split_of(d.id) == "train"
        ),
    ]
    rests = [(text, "\n".join(p for p in text.split("\n") if plain(p) not in forbidden)) for text in training]
    expected = [rest for text, rest in rests if 2 * len(rest.encode()) > len(text.encode())]
    packed = documents_in(stream_of(corpus), tokenizer.eos_token_id)
    dropped = corpus.manifest.train.dropped_tokens
    ids = sorted(encode(tokenizer, expected))
    assert len(packed) == len(ids) == corpus.manifest.train.documents
    whole = sorted(packed[:-1])
    missing = [i for i in ids if i not in whole]
    assert len(missing) <= 1  # the last document is cut by the remainder
    assert sum(map(len, ids)) + len(ids) == corpus.manifest.train.tokens + dropped
    assert dropped < 128
    assert packed != encode(tokenizer, expected)  # shuffled
    assert len(expected) < len(training)
    assert any(rest != text for text, rest in rests if rest in expected)


def test_validation_holds_whole_documents(corpus: Corpus) -> None:
    expected = {
        (d.id, name, d.text)
        for name, source in (
            ("zh", Source(path="embedded:zh", limit=300)),
            ("en", Source(path="embedded:en", part="1/2", limit=200)),
        )
        for d in read_documents(source)
        if split_of(d.id) == "validation"
    }
    assert {(r["id"], r["source"], r["text"]) for r in corpus.validation} == expected
    assert corpus.manifest.validation.documents == len(expected) > 5


def test_the_manifest_adds_up(corpus: Corpus, tokenizer: PreTrainedTokenizerFast) -> None:
    m = corpus.manifest
    assert m.tokenizer.identity == identity(tokenizer)
    assert (m.tokenizer.separator, m.tokenizer.separator_id) == ("</s>", tokenizer.eos_token_id)
    for source in m.sources:
        assert source.documents == (source.train_documents + source.validation_documents + source.repeats_of_held_out)
        assert source.used_tokens == source.train_tokens
        assert source.source.licence == "MPL-2.0"
    assert sum(s.used_tokens for s in m.sources) == m.train.tokens + m.train.dropped_tokens
    assert sum(s.validation_tokens for s in m.sources) == m.validation.tokens
    assert sum(s.share for s in m.sources) == pytest.approx(1, abs=1e-5)
    assert m.train.blocks == len(corpus.train)
    assert m.train.sha256 == hashlib.sha256(np.array(stream_of(corpus), "<i4").tobytes()).hexdigest()
    assert len(m.sources[0].files[0].sha256) == 64


def test_the_same_call_gives_the_same_bytes(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    files = [wordy(tmp_path / d / "a.jsonl", 90) for d in "xy"]  # another directory: the manifest names no machine
    made = [prepare([f], tokenizer, tmp_path / str(n), block_size=64) for n, f in enumerate(files)]
    for name in ("train.arrow", "validation.arrow", "manifest.json"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()
    assert made[0].fingerprint == made[1].fingerprint
    assert str(tmp_path) not in (tmp_path / "0" / "manifest.json").read_text()
    other = prepare(files[:1], tokenizer, tmp_path / "2", block_size=64, seed=1)
    assert other.manifest.train.tokens == made[0].manifest.train.tokens
    assert other.fingerprint != made[0].fingerprint


@pytest.mark.parametrize("before", ["file://", "local://", "simplecache::file://"])
def test_a_url_of_a_file_here_names_no_directory(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, before: str
) -> None:
    source = Source(path=before + str(wordy(tmp_path / "a.jsonl", 90)))
    corpus = prepare([source], tokenizer, tmp_path / "c", block_size=64)
    assert corpus.manifest.sources[0].source.path == "a.jsonl"
    assert str(tmp_path) not in corpus.manifest.model_dump_json()


def test_texts_of_held_out_documents_are_not_trained_on_under_another_id(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    ids = [str(n) for n in range(400)]
    held_out = next(i for i in ids if split_of(i) == "validation")
    trained = [i for i in ids if split_of(i) == "train"][:2]
    secret = "общая тайна двух страниц " * 3
    a = wordy(tmp_path / "a.jsonl", 100)
    b = lines(tmp_path / "b.jsonl", [{"id": i, "text": secret} for i in (trained[0], held_out, trained[1])])
    corpus = prepare([a, b], tokenizer, tmp_path / "c", block_size=32)
    assert corpus.manifest.sources[1].repeats_of_held_out == 2
    assert corpus.manifest.sources[1].train_documents == 0
    assert "тайна" not in tokenizer.decode(stream_of(corpus))
    assert secret in corpus.validation["text"]


@pytest.mark.parametrize("mix", ["subsample", "repeat"])
def test_weights_are_shares_of_tokens(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, mix: Any) -> None:
    rich, poor = wordy(tmp_path / "rich.jsonl", 600), wordy(tmp_path / "poor.jsonl", 150)
    sources = [Source(path=rich, weight=3), Source(path=poor, weight=2)]
    corpus = prepare(sources, tokenizer, tmp_path / "c", block_size=32, mix=mix)
    one, two = corpus.manifest.sources
    assert one.share == pytest.approx(0.6, abs=0.002)
    assert two.share == pytest.approx(0.4, abs=0.002)
    if mix == "subsample":
        assert two.used_tokens == two.train_tokens
        assert one.used_tokens == pytest.approx(two.train_tokens * 1.5, rel=0.005)
    else:
        assert one.used_tokens == one.train_tokens
        assert two.used_tokens == pytest.approx(one.train_tokens / 1.5, rel=0.005)
        assert two.passes > 2
    assert len(documents_in(stream_of(corpus), tokenizer.eos_token_id)) == pytest.approx(
        one.used_documents + two.used_documents, abs=2
    )


def test_no_validation_on_request(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    corpus = prepare([wordy(tmp_path / "a.jsonl", 5)], tokenizer, tmp_path / "c", block_size=16, validation=0)
    assert len(corpus.validation) == 0
    assert corpus.validation.column_names == ["id", "source", "text"]
    assert corpus.manifest.train.documents == 5


# ------------------------------------------------------------------------------------------ calibration


@pytest.fixture(scope="module")
def calibrated(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two languages, prepared as ``with`` and ``without`` a calibration share."""
    directory = tmp_path_factory.mktemp("calibrated")
    for name, share in (("with", 0.1), ("without", 0.0)):
        sources = [Source(path=f"embedded:{language}", limit=300) for language in ("ru", "zh")]
        prepare(sources, tokenizer, directory / name, block_size=128, calibration=share)
    return directory


def test_calibration_is_taken_from_training_alone(calibrated: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    corpus, plain_corpus = Corpus.load(calibrated / "with"), Corpus.load(calibrated / "without")
    validation = [(calibrated / name / "validation.arrow").read_bytes() for name in ("with", "without")]
    assert validation[0] == validation[1]
    found = [(d, s) for s in ("ru", "zh") for d in read_documents(Source(path=f"embedded:{s}", limit=300))]
    expected = [(d.id, s) for d, s in found if split_of(d.id, 0.05, 0.1) == "calibration"]
    made = [(r["id"], r["source"]) for r in corpus.calibration]
    left_out = sum(s.calibration_repeats for s in corpus.manifest.sources)
    assert made == [page for page in expected if page in made]
    assert len(made) == len(expected) - left_out
    assert left_out > 0
    measured = {plain(p) for text in corpus.validation["text"] for p in text.split("\n")}
    fitted = {plain(p) for text in corpus.calibration["text"] for p in text.split("\n")}
    assert not [p for p in measured & fitted if len(p.encode()) >= 16]
    assert not {r["id"] for r in corpus.validation} & {r["id"] for r in corpus.calibration}
    fitted |= measured
    for document in documents_in(stream_of(corpus), tokenizer.eos_token_id):
        trained = {plain(p) for p in tokenizer.decode(document).split("\n")}
        assert not [p for p in trained & fitted if len(p.encode()) >= 16]
    assert corpus.manifest.train.documents < plain_corpus.manifest.train.documents


def test_the_manifest_counts_calibration(calibrated: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    corpus = Corpus.load(calibrated / "with")
    texts, m = corpus.calibration["text"], corpus.manifest
    assert m.calibration_share == 0.1
    assert m.calibration.documents == len(texts) > 40
    assert m.calibration.tokens == sum(len(ids) + 1 for ids in encode(tokenizer, texts))
    assert m.calibration.text_bytes == sum(len(text.encode()) for text in texts)
    assert sum(s.calibration_tokens for s in m.sources) == m.calibration.tokens
    for source in m.sources:
        assert source.calibration_documents == corpus.calibration["source"][:].count(source.name)
        sides = source.train_documents + source.validation_documents + source.calibration_documents
        assert source.documents == sides + source.repeats_of_held_out + source.calibration_repeats
        assert source.tokens == source.train_tokens + source.validation_tokens + source.calibration_tokens
    kept = m.validation.text_bytes + m.calibration.text_bytes + sum(s.train_bytes for s in m.sources)
    lost = sum(s.cut_bytes + s.calibration_cut_bytes for s in m.sources)
    assert sum(s.text_bytes for s in m.sources) == kept + lost


def test_without_a_share_calibration_is_empty(calibrated: Path) -> None:
    corpus = Corpus.load(calibrated / "without")
    assert len(corpus.calibration) == corpus.manifest.calibration.documents == 0
    assert corpus.calibration.column_names == ["id", "source", "text"]


def test_texts_for_a_tokenizer_are_neither_validated_nor_calibrated_on() -> None:
    source = Source(path="embedded:ru", limit=300)
    expected = [d.text for d in read_documents(source) if split_of(d.id, 0.05, 0.1) == "train"]
    assert list(training_texts(source, 0.05, 0.1)) == expected
    assert set(expected) < set(training_texts(source, 0.05))


def test_texts_of_calibration_documents_are_not_trained_on_under_another_id(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    side = {split_of(str(n), 0.05, 0.1): str(n) for n in range(400)}
    secret = "общая тайна двух страниц " * 3
    b = lines(tmp_path / "b.jsonl", [{"id": side[name], "text": secret} for name in ("train", "calibration")])
    a = wordy(tmp_path / "a.jsonl", 100)
    corpus = prepare([a, b], tokenizer, tmp_path / "c", block_size=32, calibration=0.1)
    assert corpus.manifest.sources[1].repeats_of_held_out == 1
    assert "тайна" not in tokenizer.decode(stream_of(corpus))
    assert secret in corpus.calibration["text"]


def test_a_corpus_made_before_there_was_calibration_is_read(calibrated: Path, tmp_path: Path) -> None:
    shutil.copytree(calibrated / "without", tmp_path / "old")
    (tmp_path / "old" / "calibration.arrow").unlink()
    path = tmp_path / "old" / "manifest.json"
    manifest = json.loads(path.read_text())
    for record in (manifest, *manifest["sources"]):
        for field in [name for name in record if name.startswith("calibration")]:
            del record[field]
    assert "calibration_" not in json.dumps(manifest)
    rewritten(path, manifest)
    old = Corpus.load(tmp_path / "old")
    none = HeldOutRecord(documents=0, tokens=0, text_bytes=0)
    assert old.manifest == load_manifest(calibrated / "without").model_copy(update={"calibration": none})
    assert len(old.calibration) == 0
    assert old.calibration.column_names == ["id", "source", "text"]


def test_a_corpus_made_before_near_duplicates_were_looked_for_is_read(calibrated: Path, tmp_path: Path) -> None:
    shutil.copytree(calibrated / "with", tmp_path / "old")
    path = tmp_path / "old" / "manifest.json"
    manifest = json.loads(path.read_text())
    later = (
        "train_bytes",
        "cut_paragraphs",
        "cut_bytes",
        "calibration_cut",
        "calibration_repeats",
        "duplicate",
        "overlap",
    )
    for record in (manifest, *manifest["sources"]):
        for field in [name for name in record if name.startswith(later)]:
            del record[field]
    rewritten(path, manifest)
    old = Corpus.load(tmp_path / "old").manifest
    assert old.overlap is None
    assert (old.duplicate_bytes, old.sources[0].cut_bytes) == (0, 0)
    assert old.train == load_manifest(calibrated / "with").train


def test_a_lost_calibration_file_is_told(calibrated: Path, tmp_path: Path) -> None:
    shutil.copytree(calibrated / "with", tmp_path / "c")
    (tmp_path / "c" / "calibration.arrow").unlink()
    with pytest.raises(TreeringError, match=r"calibration\.arrow is missing or damaged"):
        Corpus.load(tmp_path / "c")


# --------------------------------------------------------------------------------------- long documents


def test_long_documents_are_tokenised_in_pieces(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenising, "PIECE", 100)
    text = "".join(f"строка {n}\n" for n in range(60)) + "x" * 350
    found = [Document("a", "short"), Document("b", text), Document("c", "end")]
    result = list(tokenising.tokenise(found, tokenizer))
    assert [d.id for d, _ in result] == ["a", "b", "c"]
    assert [tokenizer.decode(ids) for _, ids in result] == ["short", text, "end"]
    assert result[1][1].tolist()[:300] == encode(tokenizer, [text])[0][:300]  # cuts at line ends change nothing


# -------------------------------------------------------------------------------------------- bad input


def refused(sources: list[Any], tokenizer: PreTrainedTokenizerFast, output: Path, **options: Any) -> str:
    before = sorted(output.parent.iterdir())
    with pytest.raises(TreeringError) as caught:
        prepare(sources, tokenizer, output, **options)
    assert sorted(output.parent.iterdir()) == before  # nothing half-written is left
    return str(caught.value)


def test_sides_without_documents(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    held_out = next(str(n) for n in range(400) if split_of(str(n)) == "validation")
    one = lines(tmp_path / "a.jsonl", [{"id": held_out, "text": "abc " * 50}])
    assert "All 1 documents of a are held out" in refused([one], tokenizer, tmp_path / "c")
    few = wordy(tmp_path / "b.jsonl", 2)
    assert "None of the 2 documents is held out" in refused([few], tokenizer, tmp_path / "c")
    shares = {"validation": 0, "calibration": 1e-9}
    assert "--calibration 1e-09: there would be nothing to fit" in refused([few], tokenizer, tmp_path / "c", **shares)
    assert "part 7/1000" in refused([Source(path=few, part="7/1000")], tokenizer, tmp_path / "c")
    many = wordy(tmp_path / "d.jsonl", 100, words=1)
    assert "training documents have" in refused([many], tokenizer, tmp_path / "c", block_size=10**6)
    assert "held-out documents have" in refused([many], tokenizer, tmp_path / "c", block_size=200)


def test_arguments(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    a, out = wordy(tmp_path / "a.jsonl", 50), tmp_path / "c"
    assert "name at least one source" in refused([], tokenizer, out)
    assert "named a" in refused([a, a], tokenizer, out)
    assert "b has none" in refused([Source(path=a, weight=1), Source(path=a, name="b")], tokenizer, out)
    assert "from 0 to less than 1" in refused([a], tokenizer, out, validation=1.5)
    assert "calibration is -0.1" in refused([a], tokenizer, out, calibration=-0.1)
    assert "calibration is nan" in refused([a], tokenizer, out, calibration=float("nan"))
    assert "together they must be less than 1" in refused([a], tokenizer, out, validation=0.5, calibration=0.5)
    assert "at least 2 tokens" in refused([a], tokenizer, out, block_size=0)
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    assert "no end-of-text token" in refused([a], bare, out)


def test_an_output_with_content_is_left_alone(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    out = tmp_path / "c"
    out.mkdir()
    (out / "precious.txt").write_text("x")
    assert "already exists" in refused([wordy(tmp_path / "a.jsonl", 90)], tokenizer, out, block_size=32)
    assert (out / "precious.txt").read_text() == "x"


def test_a_fault_late_in_the_input_leaves_nothing(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    bad = wordy(tmp_path / "a.jsonl", 90)
    bad.write_bytes(bad.read_bytes() + b"\xff\n")
    assert "line 91" in refused([bad], tokenizer, tmp_path / "c", block_size=32)


@pytest.mark.parametrize("where", ["spool.Spool.append", "spool.Texts.append", "preparation.write_blocks"])
def test_a_full_disk(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"treering.corpus.{where}", full)
    message = refused([wordy(tmp_path / "a.jsonl", 90)], tokenizer, tmp_path / "c", block_size=32)
    assert "No space left on the disk" in message


def test_an_interruption_leaves_nothing(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("treering.corpus.preparation.write_blocks", stop)
    source = wordy(tmp_path / "a.jsonl", 90)
    with pytest.raises(KeyboardInterrupt):
        prepare([source], tokenizer, tmp_path / "c", block_size=32)
    assert list(tmp_path.iterdir()) == [source]


_KILLED = """
import os, signal, sys
from treering import tokenizer as tokenizers
from treering.corpus import prepare

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[4] == "blocks":
    import treering.corpus.preparation as preparation
    preparation.write_blocks = kill
else:
    os.fsync = kill
prepare([sys.argv[1]], tokenizers.load(sys.argv[2]), sys.argv[3], block_size=32)
"""


@pytest.mark.parametrize("when", ["blocks", "fsync"])
def test_a_kill_leaves_nothing_that_the_next_start_does_not_clean(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, when: str
) -> None:
    source, out = wordy(tmp_path / "a.jsonl", 90), tmp_path / "out" / "c"
    save(tokenizer, tmp_path)
    arguments = [sys.executable, "-c", _KILLED, source, tmp_path, out, when]
    assert subprocess.run(arguments, check=False, capture_output=True).returncode == -signal.SIGKILL
    assert not out.exists() and list(out.parent.iterdir())  # a staging directory and a lock
    made = prepare([source], tokenizer, out, block_size=32)
    assert list(out.parent.iterdir()) == [out]
    plain = prepare([source], tokenizer, tmp_path / "plain", block_size=32)
    assert {f.name: f.read_bytes() for f in out.iterdir()} == {
        f.name: f.read_bytes() for f in plain.directory.iterdir()
    }
    assert made.fingerprint == plain.fingerprint
    mask = os.umask(0)
    os.umask(mask)
    assert {stat.S_IMODE(file.stat().st_mode) for file in out.iterdir()} == {0o666 & ~mask}


# ----------------------------------------------------------------------------------------------- loading


def test_loading_what_is_not_whole(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    prepare([wordy(tmp_path / "a.jsonl", 90)], tokenizer, tmp_path / "c", block_size=32)
    assert load_manifest(tmp_path / "c").block_size == 32
    with pytest.raises(TreeringError, match="is not a prepared corpus"):
        Corpus.load(tmp_path / "nowhere")
    train = tmp_path / "c" / "train.arrow"
    whole = train.read_bytes()
    for content in (whole[: len(whole) // 2], b""):
        train.write_bytes(content)
        with pytest.raises(TreeringError, match=r"train\.arrow"):
            Corpus.load(tmp_path / "c")
    train.unlink()
    with pytest.raises(TreeringError, match=r"train\.arrow"):
        Corpus.load(tmp_path / "c")
    manifest = tmp_path / "c" / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(TreeringError, match="corpus format 99"):
        Corpus.load(tmp_path / "c")
    manifest.write_text(text[:100])
    with pytest.raises(TreeringError, match="cannot be read"):
        Corpus.load(tmp_path / "c")


@pytest.fixture
def whole(calibrated: Path, tmp_path: Path) -> Path:
    """A corpus of its own to damage."""
    shutil.copytree(calibrated / "with", tmp_path / "c")
    return tmp_path / "c"


@pytest.mark.parametrize("name", ["train.arrow", "validation.arrow", "calibration.arrow"])
def test_a_flipped_bit_is_told(whole: Path, name: str) -> None:
    """Of every byte that says something; before, one in train.arrow trained another model."""
    path = whole / name
    content = path.read_bytes()
    corpus = Corpus.load(whole)
    for at in range(100, len(content), len(content) // 60):
        path.write_bytes(bytes([*content[:at], content[at] ^ 4, *content[at + 1 :]]))
        try:
            same = Corpus.load(whole)
        except TreeringError as error:
            assert str(path) in str(error)
        else:  # it stood in padding
            assert stream_of(same) == stream_of(corpus)
            assert same.validation.to_list() == corpus.validation.to_list()
            assert same.calibration.to_list() == corpus.calibration.to_list()


def test_text_changed_into_other_text_is_told(whole: Path) -> None:
    """The same length in the same place: only a checksum can tell."""
    for name in ("validation", "calibration"):
        path = whole / f"{name}.arrow"
        word = Corpus.load(whole).validation[0]["text"].encode()[:6] if name == "validation" else None
        word = word or Corpus.load(whole).calibration[0]["text"].encode()[:6]
        content = path.read_bytes()
        path.write_bytes(content.replace(word, b"zzzzzz"[: len(word)], 1))
        with pytest.raises(TreeringError, match="do not have the SHA-256"):
            Corpus.load(whole)
        with pytest.raises(TreeringError, match="do not have the SHA-256"):
            load_held_out(whole, name)
        path.write_bytes(content)


def test_an_id_beyond_the_vocabulary_is_told(whole: Path) -> None:
    path = whole / "train.arrow"
    tokens = np.concatenate([block["input_ids"] for block in Corpus.load(whole).train])
    for wrong in (10**9, -1):
        changed = tokens.copy()
        changed[100] = wrong
        path.unlink()
        _, digest = write_blocks(path, list(changed.reshape(-1, 128)), 128)
        edit(whole / "manifest.json", lambda m, digest=digest: m["train"].update(sha256=digest))
        with pytest.raises(TreeringError, match="a token ID that is not below"):
            Corpus.load(whole)


@pytest.mark.parametrize("name", ["train.arrow", "validation.arrow", "calibration.arrow", "manifest.json"])
def test_links_and_devices_are_not_read(whole: Path, name: str) -> None:
    path = whole / name
    path.rename(whole.parent / "elsewhere")
    path.symlink_to(whole.parent / "elsewhere")
    with pytest.raises(TreeringError, match="is a link"):
        Corpus.load(whole)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(TreeringError, match="no ordinary file"):
        Corpus.load(whole)


def rewritten(path: Path, manifest: dict[str, Any]) -> None:
    """Another manifest in a corpus, as a stranger or an earlier version would leave it: with no checksum of it."""
    path.write_text(json.dumps(manifest))
    path.with_name("manifest.sha256").unlink(missing_ok=True)


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads(path.read_text())
    change(manifest)
    rewritten(path, manifest)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda m: m.update(block_size=-1), "block_size"),
        (lambda m: m.update(block_size=2**40), "block_size"),
        (lambda m: m.update(block_size=64), "columns are not input_ids of the expected types"),
        (lambda m: m.update(validation_share=float("nan")), "validation_share"),
        (lambda m: m["tokenizer"].update(vocab_size=10**10), "tokenizer.vocab_size"),
        (lambda m: m["tokenizer"].update(vocab_size=5), "a token ID that is not below 5"),
        (lambda m: m["train"].update(blocks=-1), "train.blocks"),
        (lambda m: m["train"].update(blocks=1), "rows where the manifest says 1"),
        (lambda m: m["train"].update(sha256="0"), "train.sha256"),
        (lambda m: m["validation"].update(documents=10**6), "rows where the manifest says 1000000"),
        (lambda m: m["validation"].update(text_bytes=1), "or another text"),
        (lambda m: m.update({"\x1b[31m": 1}), r"\\x1b\[31m"),
    ],
)
def test_a_manifest_that_does_not_fit_is_told(
    whole: Path, change: Callable[[dict[str, Any]], Any], expected: str
) -> None:
    edit(whole / "manifest.json", change)
    with pytest.raises(TreeringError, match=expected):
        Corpus.load(whole)


def test_one_bit_of_a_manifest_is_told_and_sha256sum_agrees_with_the_rest(whole: Path) -> None:
    checked = subprocess.run(["sha256sum", "-c", "manifest.sha256"], cwd=whole, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout) == (0, "manifest.json: OK\n")
    path = whole / "manifest.json"
    before = path.read_bytes()
    at = before.index(b"documents") + len(b'documents": ')
    path.write_bytes(before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])  # a digit to another
    with pytest.raises(TreeringError, match=r"manifest\.json.*does not have the SHA-256 that manifest\.sha256 says"):
        Corpus.load(whole)
    path.write_bytes(before)
    (whole / "manifest.sha256").write_text("0" * 64 + "  manifest.json\n")
    with pytest.raises(TreeringError, match="does not have the SHA-256"):
        load_manifest(whole)
    (whole / "manifest.sha256").unlink()  # an earlier version wrote none
    assert load_manifest(whole) == Manifest.model_validate_json(before)


@pytest.mark.parametrize(
    "content", [b"", b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b'{"format_version": "\\ud800"}', b"1" * 10_000]
)
def test_a_manifest_that_is_none_is_told(whole: Path, content: bytes) -> None:
    (whole / "manifest.json").write_bytes(content)
    with pytest.raises(TreeringError, match=r"manifest\.json cannot be read"):
        Corpus.load(whole)


def test_a_corpus_of_an_earlier_version_without_checksums_of_its_documents_is_read(whole: Path) -> None:
    edit(whole / "manifest.json", lambda m: [m[split].pop("sha256") for split in ("validation", "calibration")])
    old = Corpus.load(whole)
    assert old.manifest.validation.sha256 is None
    assert len(old.validation) == old.manifest.validation.documents
    assert load_held_out(whole).to_list() == old.validation.to_list()


def test_the_same_documents_have_the_same_checksum(corpus: Corpus) -> None:
    rows = [[row["id"], row["source"], row["text"]] for row in corpus.validation]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    assert corpus.manifest.validation.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert corpus.manifest.calibration.sha256 == hashlib.sha256().hexdigest()


def test_another_tokenizer_is_refused(corpus: Corpus, tokenizer: PreTrainedTokenizerFast) -> None:
    require_match(corpus, tokenizer)
    changed = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>")
    changed.add_special_tokens({"additional_special_tokens": ["<new>"]})
    with pytest.raises(TreeringError) as caught:
        require_match(corpus, changed)
    assert identity(tokenizer) in str(caught.value)
    assert identity(changed) in str(caught.value)
