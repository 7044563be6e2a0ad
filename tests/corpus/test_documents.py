from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import itertools
import json
import lzma
import os
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from treering.corpus import Source, read_documents
from treering.corpus.documents import PASSAGE_LEAST, PASSAGE_MOST
from treering.corpus.source import text_id
from treering.corpus.streams import Receipt
from treering.errors import TreeringError

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda b: b,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}
ROWS = [{"id": "a", "text": "Ёлка\nи 雪"}, {"id": 7, "text": "e\u0301 🎄 \u0000"}, {"text": "no id"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def texts(path: Path | str, **fields: object) -> list[str]:
    return [d.text for d in read_documents(Source(path=str(path), **fields))]


def fails(path: Path | str, **fields: object) -> str:
    with pytest.raises(TreeringError) as caught:
        texts(path, **fields)
    return str(caught.value)


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, bytes], Path]:
    def write(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("packing", PACKERS)
def test_json_lines_in_every_packing(put: Callable, packing: str) -> None:
    packed = PACKERS[packing](LINES)
    path = put(f"a.jsonl{packing}", packed)
    receipt = Receipt()
    documents = list(read_documents(path, receipt=receipt))
    assert [d.text for d in documents] == [row["text"] for row in ROWS]
    assert [d.id for d in documents] == ["a", "7", text_id("no id")]
    (file,) = receipt.files
    assert (file.name, file.bytes) == (path.name, len(packed))
    assert file.sha256 == hashlib.sha256(packed).hexdigest()


@pytest.mark.parametrize("packing", list(PACKERS)[1:])
def test_members_one_after_another_are_all_read(put: Callable, packing: str) -> None:
    parts = b"".join(PACKERS[packing](line) for line in LINES.splitlines(keepends=True))
    assert len(texts(put(f"a.jsonl{packing}", parts))) == 3


@pytest.mark.parametrize("packing", list(PACKERS)[1:])
@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_truncated_file_is_named(put: Callable, packing: str, keep: float) -> None:
    content = PACKERS[packing]("".join(f"line {n * n}\n" for n in range(5_000)).encode())
    path = put(f"a.txt{packing}", content[: int(len(content) * keep)])
    assert f"{path} is not a whole {packing} file" in fails(path)


@pytest.mark.parametrize("packing", list(PACKERS)[1:])
def test_a_file_that_is_not_packed_at_all(put: Callable, packing: str) -> None:
    assert "is not a whole" in fails(put(f"a.txt{packing}", b"plain text, wrongly named"))


@pytest.mark.parametrize("packing", list(PACKERS)[1:])
def test_padding_is_skipped_and_rubbish_is_told(put: Callable, packing: str) -> None:
    """What follows a member and is none was left out in silence of bz2 and xz."""
    packed = PACKERS[packing](b"one\n")
    assert texts(put(f"a.txt{packing}", packed + bytes(3_000) + packed), document="line") == ["one", "one"]
    flipped = bytes([packed[0] ^ 1]) + packed[1:]
    assert "is not a whole" in fails(put(f"b.txt{packing}", packed + flipped), document="line")


@pytest.mark.parametrize("packing", list(PACKERS)[1:])
def test_one_endless_line_stops_at_the_limit_in_bounded_memory(put: Callable, packing: str) -> None:
    """9 kB of zstd held 608 MB, unpacked at once and copied over and over."""
    path = put(f"a.txt{packing}", PACKERS[packing](b"x" * 300_000_000))
    tracemalloc.start()
    assert "line 1 (from byte 0): the line is longer than" in fails(path, max_document_bytes=100_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size < 400_000
    assert peak < 80_000_000  # zstd: 32 MiB of 1 KiB at most, twice while they are put together


def test_many_lines_of_a_small_zstd_file(put: Callable) -> None:
    """All that the bomb holds, where it is text: 200 MB in pieces that are never copied as a whole."""
    path = put("a.txt.zst", zstandard.compress(b"word\n" * 40_000_000))
    tracemalloc.start()
    found = list(itertools.islice(read_documents(Source(path=str(path), max_document_bytes=100_000)), 50))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 50
    assert peak < 100_000_000


@settings(max_examples=150)
@given(st.sampled_from(list(PACKERS)), st.binary(max_size=80), st.integers(0, 200), st.booleans())
def test_any_bytes_are_documents_or_a_message(
    tmp_path_factory: pytest.TempPathFactory, packing: str, noise: bytes, at: int, within: bool
) -> None:
    packed = PACKERS[packing](LINES[:at] + noise + LINES[at + len(noise) :] if within else LINES)
    path = tmp_path_factory.mktemp("any") / f"a.jsonl{packing}"
    path.write_bytes(packed if within else packed[:at] + noise + packed[at + len(noise) :])
    try:
        for document in read_documents(path):
            assert document.text.encode() and document.id.encode()
    except TreeringError as error:
        assert str(path) in str(error)
        assert str(error).encode()


def test_a_window_or_dictionary_beyond_any_need_is_refused(put: Callable) -> None:
    content = b"x" * 1_000_000
    wide = zstandard.ZstdCompressionParameters(window_log=29)
    compressor = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    zst = compressor.compress(content) + compressor.flush()
    for name, packed in (("a.txt.zst", zst), ("a.txt.xz", _with_dictionary(lzma.compress(content)))):
        assert "more than 256 MiB of memory to unpack" in fails(put(name, packed))


def _with_dictionary(xz: bytes) -> bytes:
    """An xz stream whose block header asks for a dictionary of 4 GiB: what an attacker writes needs no such memory."""
    size = (xz[12] + 1) * 4
    header = bytearray(xz[12 : 12 + size])
    at = header.index(b"\x21\x01") + 2  # LZMA2, one byte of properties
    header[at] = 40
    header[-4:] = zlib.crc32(bytes(header[:-4])).to_bytes(4, "little")
    return xz[:12] + bytes(header) + xz[12 + size :]


def test_endless_blank_lines_are_no_text(put: Callable) -> None:
    path = put("a.txt.zst", zstandard.compress(b"first\n" + b"\n" * 3_000_000))
    for rule in ("passage", "paragraph", "line"):
        assert f"{path}, line 1000002: 1,000,001 blank lines" in fails(path, document=rule)


def test_the_hash_covers_the_whole_file_when_reading_stops_early(put: Callable) -> None:
    path = put("a.jsonl", LINES)
    receipt = Receipt()
    documents = list(read_documents(Source(path=str(path), limit=2), receipt=receipt))
    assert len(documents) == 2
    assert receipt.files[0].sha256 == hashlib.sha256(LINES).hexdigest()


# ------------------------------------------------------------------------------------------- plain text


def test_document_rules(put: Callable) -> None:
    path = put("a.txt", "один\nдва\r\n\r\n\n три \n \n四".encode())
    assert texts(path, document="paragraph") == ["один\nдва", " три ", "四"]
    assert texts(path, document="line") == ["один", "два", " три ", "四"]
    assert texts(path, document="file") == ["один\nдва\n\n\n три \n \n四"]
    assert texts(path) == ["один\nдва\n\n\n три \n \n四"]


def test_passages_have_a_useful_size_with_and_without_blank_lines(put: Callable) -> None:
    paragraph = "слово " * 50 + "\n"
    for text in (paragraph * 400, (paragraph + "\n") * 400):
        found = texts(put("a.txt", text.encode()))
        assert all(PASSAGE_LEAST <= len(t) <= PASSAGE_MOST + len(paragraph) for t in found[:-1])
        assert "".join(found).split() == text.split()


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=300)))
def test_passages_lose_nothing_but_line_ends(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = tmp_path_factory.mktemp("passages") / "a.txt"
    text = "x" + "\n".join(lines)
    path.write_bytes(text.encode())
    joined = [line for t in texts(path) for line in t.split("\n") if line.strip()]
    assert joined == [line for line in text.split("\n") if line.strip()]


def test_a_byte_order_mark_is_not_text(put: Callable) -> None:
    assert texts(put("a.txt", b"\xef\xbb\xbfabc\n")) == ["abc"]
    assert texts(put("a.jsonl", b"\xef\xbb\xbf" + LINES))[2] == "no id"


def test_the_id_of_plain_text_is_its_hash(put: Callable) -> None:
    (document,) = read_documents(put("a.txt", b"abc\n"))
    assert document.id == hashlib.sha256(b"abc").hexdigest()[:32]


# ----------------------------------------------------------------------------------- files and directories


def test_directories_and_globs(put: Callable, tmp_path: Path) -> None:
    put("d/b.txt", b"second")
    put("d/a/a.jsonl.gz", gzip.compress(b'{"text": "first"}'))
    put("d/.hidden.txt", b"no")
    put("d/README.md", b"no")
    receipt = Receipt()
    found = list(read_documents(str(tmp_path / "d"), receipt=receipt))
    assert [d.text for d in found] == ["first", "second"]
    assert [f.name for f in receipt.files] == ["a/a.jsonl.gz", "b.txt"]
    assert texts(tmp_path / "d/*.txt") == ["second"]
    assert texts(tmp_path / "**/*.gz") == ["first"]
    assert "No file matches" in fails(tmp_path / "d/*.text")
    assert "holds no file that ends in .txt" in fails(put("e/x.bin", b"1").parent)


def test_urls_are_opened_through_fsspec() -> None:
    with fsspec.open("memory://bucket/a.jsonl.gz", "wb") as file:
        file.write(gzip.compress(LINES))
    receipt = Receipt()
    assert len(list(read_documents("memory://bucket/a.jsonl.gz", receipt=receipt))) == 3
    assert receipt.files[0].name == "a.jsonl.gz"
    assert "could not be opened" in fails("memory://bucket/none.txt")
    assert "could not be opened" in fails("nosuch://bucket/a.txt")


def test_missing_file_and_unknown_extension(put: Callable, tmp_path: Path) -> None:
    assert "There is no file or directory" in fails(tmp_path / "a.txt")
    assert "the extension .doc does not say" in fails(put("a.doc", b"abc"))
    assert "(none)" in fails(put("words", b"abc"))
    assert texts(put("words", b"abc"), format="text") == ["abc"]


@pytest.mark.parametrize("content", [b"", b"\n \n\n"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz"])
def test_an_empty_file(put: Callable, name: str, content: bytes) -> None:
    path = put(name, gzip.compress(content) if name.endswith("gz") else content)
    assert f"{path} is empty" in fails(path)


def test_a_file_of_empty_documents_is_empty_and_they_are_counted(put: Callable) -> None:
    assert "is empty" in fails(put("a.jsonl", b'{"text": " "}\n{"text": null}\n'))
    receipt = Receipt()
    path = put("b.jsonl", b'{"text": " "}\n{"text": "x"}\n{"text": null}\n')
    assert len(list(read_documents(path, receipt=receipt))) == 1
    assert receipt.empty_documents == 2


# ----------------------------------------------------------------------------------------- broken content


def test_not_utf8_names_line_and_byte(put: Callable) -> None:
    path = put("a.txt", "строка\n".encode() + "строка\n".encode("cp1251"))
    for rule in ("passage", "line", "file"):
        message = fails(path, document=rule)
        assert f"{path}, line 2, byte 13: 0xF1 is not UTF-8" in message
        assert "iconv" in message
    assert "UTF-16" in fails(put("b.txt", "слово".encode("utf-16")))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"text": "a"', "not valid JSON"),
        (b"plain", "not valid JSON"),
        (b'["a"]', "a list stands where a JSON object should"),
        (b'"a"', "a str stands"),
        (b'{"body": "a", "title": "b"}', "no field 'text'; the fields are: body, title"),
        (b"{}", "the fields are: none"),
        (b'{"text": 3}', "field 'text' is a int, not text"),
        (b'{"text": "a\\ud800b"}', "lone surrogate U+D800"),
        (b'{"paragraphs": [{"id": 1}]}', 'each of "paragraphs"'),
        (b"[" * 200_000, "JSON"),
        (b'{"text": "a", "id": "b\\udc00"}', "character 1 of the field 'id' is the lone surrogate U+DC00"),
        (b'{"text": "a", "id": 1.5}', "field 'id' is a float, not text or a whole number"),
        (b'{"text": "a", "id": ["b"]}', "field 'id' is a list, not text or a whole number"),
        (b'{"text": "a", "id": true}', "field 'id' is a bool"),
        (b'{"text": "a", "id": "' + b"x" * 1_000_000 + b'"}', "has 1,000,000 characters; no id is as long"),
        (b'{"text": "a", "id": ' + b"9" * 10_000 + b"}", "not valid JSON: Exceeds the limit"),
        (b'{"paragraphs": [{"text": "\\udfff"}]}', "lone surrogate U+DFFF"),
        (b'{"\\ud800": 1, "\\u001b[31m": 2}', r"the fields are: \ud800, \x1b[31m"),
        (b"{" + b",".join(b'"%d":1' % n for n in range(200)) + b"}", "48, 49. Name"),
        (b'{"text": "a", "more": [' + b"[]," * 3_000_000 + b"1]}", "more than 2,000,000 values in one object"),
    ],
)
def test_broken_json_names_the_line(put: Callable, line: bytes, expected: str) -> None:
    path = put("a.jsonl", b'{"text": "fine"}\n\n' + line + b"\n")
    message = fails(path)
    assert f"{path}, line 3" in message
    assert expected in message


def test_commas_and_brackets_in_a_text_are_no_values(put: Callable) -> None:
    text = '[{,"\\' * 1_000_000
    assert texts(put("a.jsonl", json.dumps({"text": text}).encode())) == [text]


def test_a_missing_id_is_made_from_the_text(put: Callable) -> None:
    path = put("a.jsonl", b'{"text": "a", "id": null}\n{"text": "b", "id": ""}\n{"text": "c", "id": 1.5}\n')
    documents = list(read_documents(Source(path=str(path), id_field="none")))
    assert [d.id for d in documents] == [text_id(t) for t in "abc"]
    assert [d.id for d in itertools.islice(read_documents(path), 2)] == [text_id("a"), text_id("b")]


def test_a_name_that_is_no_unicode_is_told(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / os.fsdecode(b"d/caf\xe9.txt")).write_bytes(b"text")
    assert r"caf\udce9.txt: the file's name is not UTF-8" in fails(tmp_path / "d")
    with pytest.raises(TreeringError, match=r"caf\\udce9\.txt"):
        list(read_documents(str(tmp_path / os.fsdecode(b"d/caf\xe9.txt"))))


def test_a_json_array_gets_advice(put: Callable) -> None:
    content = b'[{"text": "a"},\n{"text": "b"}]\n'
    assert "--format json" in fails(put("a.jsonl", content))
    assert texts(put("a.json", content)) == ["a", "b"]


def test_paragraphs_and_other_fields(put: Callable) -> None:
    row = {"id": 1, "paragraphs": [{"text": "a"}, "b"], "body": "c", "key": "k"}
    path = put("a.jsonl", json.dumps(row).encode())
    assert texts(path) == ["a\nb"]
    (document,) = read_documents(Source(path=str(path), text_field="body", id_field="key"))
    assert (document.id, document.text) == ("k", "c")


def test_repeated_ids_are_allowed(put: Callable) -> None:
    path = put("a.jsonl", b'{"id": 1, "text": "a"}\n{"id": 1, "text": "b"}\n')
    assert [d.id for d in read_documents(path)] == ["1", "1"]


@pytest.mark.parametrize("rule", ["line", "file", "paragraph", "passage"])
def test_a_document_that_is_too_long_is_not_read_into_memory(put: Callable, rule: str) -> None:
    path = put("a.txt", b"short\n\n" + b"x" * 30_000_000)
    tracemalloc.start()
    message = fails(path, document=rule, max_document_bytes=100_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(path) in message
    assert "100,000 bytes" in message
    assert peak < 5_000_000


def test_a_long_paragraph_of_short_lines_is_too_long_too(put: Callable) -> None:
    path = put("a.txt", b"first\n\n" + b"word\n" * 50_000)
    assert "line 3: the paragraph" in fails(path, document="paragraph", max_document_bytes=100_000)
    assert len(texts(path, max_document_bytes=100_000)) > 10  # passages cut at line ends


def test_long_json_is_too_long(put: Callable) -> None:
    path = put("a.jsonl", b'{"text": "a"}\n{"text": "' + b"x" * 200_000 + b'"}\n')
    assert f"{path}, line 2 (from byte 14)" in fails(path, max_document_bytes=100_000)


# ----------------------------------------------------------------------------------------------- parquet


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": list(range(700)), "text": [f"text {n}" for n in range(700)]}), path)
    documents = list(read_documents(path))
    assert [d.id for d in documents] == [str(n) for n in range(700)]
    assert documents[-1].text == "text 699"
    assert "no field 'body'; the fields are: id, text" in fails(path, text_field="body")
    path.write_bytes(path.read_bytes()[:-20])
    assert "is not a whole Parquet file" in fails(path)


def test_parquet_with_paragraphs_and_null(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"paragraphs": [[{"text": "a"}, {"text": "b"}], [{"text": "c"}]]}), path)
    assert texts(path) == ["a\nb", "c"]
    pq.write_table(pa.table({"text": ["a", None]}), path)
    assert texts(path) == ["a"]


def test_every_damaged_parquet_file_is_told(put: Callable) -> None:
    """Of 2,000 such files 1,039 raised a plain OSError or UnicodeDecodeError."""
    random = Random(0)
    buffer = io.BytesIO()
    pq.write_table(pa.table({"id": list(range(50)), "text": [f"слово {n}" for n in range(50)]}), buffer)
    whole, told = buffer.getvalue(), 0
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(random.choice((1, 1, 4))):
            content[random.randrange(max(0, len(content) - random.choice((60, 600, 6_000))), len(content))] ^= (
                random.randrange(1, 256)
            )
        path = put("a.parquet", bytes(content))
        try:
            list(read_documents(path))
        except TreeringError as error:
            assert str(path) in str(error)
            told += 1
    assert told > 100


def test_a_column_whose_name_is_no_text(put: Callable, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "zzzz": [1]}), tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes().replace(b"zzzz", b"\xff\xfe\xff\xfe")
    assert "a.parquet is not a whole Parquet file (after row 0)" in fails(put("a.parquet", content))


def test_rows_that_share_one_long_text_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    """A dictionary lets 20 kB say 1 GB."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 200, pa.int32()), pa.array(["x" * 5_000_000]))
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet", compression="zstd", store_schema=False)
    assert (tmp_path / "a.parquet").stat().st_size < 50_000
    before = pa.total_allocated_bytes()
    for document in itertools.islice(read_documents(tmp_path / "a.parquet"), 9):
        assert len(document.text) == 5_000_000
        assert pa.total_allocated_bytes() - before < 150_000_000
