"""Records of JSON lines, JSON arrays, CSV and TSV: one at a time, with where each stands."""

from __future__ import annotations

import codecs
import csv
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

from treering.errors import TreeringError

MOST_VALUES = 2_000_000  # of a record of JSON; one of three bytes takes dozens in memory
TAB = "\t"
_CHUNK = 1 << 16

Record = tuple[str, Mapping[str, Any]]
"""Where it stands, and its fields."""
Lines = Iterable[tuple[int, str]]
"""Lines with their numbers."""


def json_lines(lines: Lines, path: str) -> Iterator[Record]:
    """The object on each line.

    Raises:
        TreeringError: a line is none, or holds more values than a document can.
    """
    for number, line in lines:
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        _require_few(line, where)
        try:
            row = json.loads(line)
        except RecursionError:
            raise _too_deep(where) from None
        except ValueError as error:
            hint = (
                " This looks like one JSON array; name the format: --format json."
                if line.lstrip().startswith("[")
                else ""
            )
            raise TreeringError(
                f"{where}: not valid JSON: {error}. JSON lines have one whole object on each line.{hint}"
            ) from None
        yield where, _object(row, where)


def json_array(stream: IO[bytes], path: str, limit: int) -> Iterator[Record]:
    """The objects of one JSON array, of which about one is in memory.

    Raises:
        TreeringError: it is no array of objects, is cut short or no UTF-8, or one of them is longer than ``limit``.
    """
    window = _Window(stream, path)
    if window.next() != "[":
        raise TreeringError(f"{path}: a JSON array begins with [.")
    window.at += 1
    if window.next() == "]":
        return
    for number in itertools.count(1):
        where = f"{path}, record {number}"
        yield where, _object(window.value(where, limit), where)
        mark = window.next()
        window.at += 1
        if mark == "]":
            return
        if mark != ",":
            raise TreeringError(f"{where}: {mark or 'nothing'} follows it, where a comma or ] should. Is it cut short?")


class _Window:
    """The part of a stream of JSON that is being read; ``at`` is where the next value, or what is between, begins."""

    def __init__(self, stream: IO[bytes], path: str) -> None:
        self.stream, self.path = stream, path
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at = "", 0

    def next(self) -> str:
        """The next character that is no white space, which ``at`` is moved to; none at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at].isspace():
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def value(self, where: str, limit: int) -> Any:
        """The next value."""
        self.next()
        while True:
            try:
                value, self.at = json.JSONDecoder().raw_decode(self.text, self.at)
                return value
            except RecursionError:
                raise _too_deep(where) from None
            except ValueError as error:
                held = len(self.text) - self.at
                if held > limit or not self._more():
                    raise TreeringError(
                        f"{where}: no whole JSON value begins here, of {limit:,} bytes at most: {error.args[0]}."
                    ) from None
                _require_few(self.text, where)

    def _more(self) -> bool:
        """Read on: as much again as is held, so that a long value is tried few times; False at the end."""
        self.text, self.at = self.text[self.at :], 0
        data = self.stream.read(max(_CHUNK, len(self.text)))
        try:
            self.text += self.decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise TreeringError(f"{self.path} is not UTF-8 text ({error.reason}). Convert it first.") from None
        return bool(data)


def table_rows(lines: Lines, path: str, delimiter: str, limit: int) -> Iterator[Record]:
    """The rows of CSV or TSV, by the names in its first line.

    Raises:
        TreeringError: its quotes do not close, a row has more fields than names, or a field is longer than ``limit``.
    """
    csv.field_size_limit(max(limit, csv.field_size_limit()))  # of the whole process; texts are longer than the default
    reader = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True)
    try:
        names = next(reader, [])
        for values in reader:
            where = f"{path}, line {reader.line_num}"
            if len(values) > len(names):
                raise TreeringError(
                    f"{where}: {len(values)} fields, but the first line names {len(names)}. Put a text with "
                    f"{'tabs' if delimiter == TAB else 'commas'} in quotes."
                )
            if values:
                yield where, dict.fromkeys(names) | dict(zip(names, values, strict=False))
    except csv.Error as error:
        raise TreeringError(f"{path}, line {reader.line_num}: not a table as CSV is written: {error}.") from None


def _object(row: Any, where: str) -> Mapping[str, Any]:
    if isinstance(row, dict):
        return row
    hint = " This looks like one JSON array; name the format: --format json." if isinstance(row, list) else ""
    raise TreeringError(f"{where}: a {type(row).__name__} stands where a JSON object should.{hint}")


def _too_deep(where: str) -> TreeringError:
    return TreeringError(f"{where}: the JSON is nested too deeply to be a document.")


def _require_few(text: str, where: str) -> None:
    """Refuse JSON of more values than a document can have, for the memory that they would take."""
    marks = ",[{"
    if sum(map(text.count, marks)) > MOST_VALUES:  # unless they stand inside texts
        text = re.sub(r'"(?:[^"\\]|\\.)*"', "", text)
        if sum(map(text.count, marks)) > MOST_VALUES:
            raise TreeringError(
                f"{where}: more than {MOST_VALUES:,} values in one object are no document. Break it up."
            )
