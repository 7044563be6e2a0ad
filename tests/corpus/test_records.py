"""JSON arrays, CSV and TSV as sources of documents."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treering.corpus import Source, read_documents
from treering.corpus.records import MOST_VALUES
from treering.errors import TreeringError

ROWS = [{"id": n, "text": f'text {n}, "quoted" 打开\n{"line " * n}', "more": [n, {"x": None}]} for n in range(1, 400)]


def put(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def read(path: Path, **fields: object) -> list[tuple[str, str]]:
    return [(d.id, d.text) for d in read_documents(Source(path=str(path), **fields))]


def fails(path: Path, **fields: object) -> str:
    with pytest.raises(TreeringError) as error:
        read(path, **fields)
    return str(error.value)


def as_csv(rows: list[dict], delimiter: str) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
    return out.getvalue().encode()


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", b" \n\t"])
def test_a_json_array_is_read_like_json_lines(tmp_path, indent, before):
    expected = [(str(row["id"]), row["text"]) for row in ROWS]
    content = before + json.dumps(ROWS, indent=indent, ensure_ascii=False).encode()
    assert read(put(tmp_path, "a.json", content)) == expected
    assert read(put(tmp_path, "a.json.gz", gzip.compress(content))) == expected
    assert read(put(tmp_path, "b.txt", content), format="json") == expected
    lines = b"\n".join(json.dumps(row).encode() for row in ROWS)
    assert read(put(tmp_path, "lines.json", lines)) == expected


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t"), ("b.csv.gz", ",")])
def test_tables_are_read_by_the_names_in_their_first_line(tmp_path, name, delimiter):
    content = as_csv(ROWS, delimiter)
    path = put(tmp_path, name, gzip.compress(content) if name.endswith(".gz") else content)
    assert read(path) == [(str(row["id"]), row["text"]) for row in ROWS]
    assert [text for _, text in read(path, text_field="id", id_field="none")] == [str(row["id"]) for row in ROWS]
    assert "there is no field 'body'; the fields are: id, text, more" in fails(path, text_field="body")


def test_a_row_that_is_short_or_empty_has_no_text(tmp_path):
    path = put(tmp_path, "a.csv", b"id,text\n1,first\n\n2\n3,\n4,last\n")
    assert read(path) == [("1", "first"), ("4", "last")]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", b'[{"text": "a"} {"text": "b"}]', "record 1: { follows it, where a comma or ] should"),
        ("a.json", b'[{"text": "a"}', "record 1: nothing follows it"),
        ("a.json", b'[{"text": "a"}, {"text": "b"', "record 2: no whole JSON value begins here"),
        ("a.json", b'[{"text": "a"}, 7]', "record 2: a int stands where a JSON object should"),
        ("a.json", b"[]", "a.json is empty"),
        ("a.json", b'[{"text": "\xff"}]', "is not UTF-8 text"),
        ("a.json", b'[{"text": "' + b"x" * 3_000_000 + b'"}]', "record 1"),
        ("a.json", b"[" * 200_000, "nested too deeply"),
        ("a.jsonl", b'[{"text": "a"}]', "--format json"),
        ("a.csv", b'id,text\n1,"open\n', "not a table as CSV is written"),
        ("a.csv", b"id,text\n1,one, two\n", "line 2: 3 fields, but the first line names 2. Put a text with commas"),
        ("a.csv", b"text\n" + b'"' + b"x\n" * 1_000_000 + b'"\n', "a.csv, line"),
        ("a.csv", b"id,text\n", "a.csv is empty"),
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv", b"text\ncaf\xe9\n", "0xE9 is not UTF-8"),
    ],
)
def test_what_is_broken_is_told_with_its_place(tmp_path, name, content, expected):
    message = fails(put(tmp_path, name, content), max_document_bytes=1_000_000)
    assert str(tmp_path / name) in message and expected in message


def test_more_values_than_a_document_has_are_refused(tmp_path):
    content = b'[{"text": "a", "more": [' + b"[]," * (MOST_VALUES + 1) + b"1]}]"
    assert "more than 2,000,000 values" in fails(put(tmp_path, "a.json", content))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=50), min_size=1), JSON)
def test_any_array_and_any_table_come_back(tmp_path_factory, texts, other):
    folder = tmp_path_factory.mktemp("any")
    rows = [{"id": f"{n}", "text": text, "other": other} for n, text in enumerate(texts)]
    expected = [(row["id"], row["text"]) for row in rows if row["text"].strip()]
    if not expected:
        return
    assert read(put(folder, "a.json", json.dumps(rows).encode())) == expected
    # A line end, as in plain text; and what Python 3.10 writes into no table.
    if not any(character in text for text in [*texts, str(other)] for character in "\r\0"):
        assert read(put(folder, "a.csv", as_csv(rows, ","))) == expected
