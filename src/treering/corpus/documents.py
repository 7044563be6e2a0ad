"""Documents out of text, JSON, CSV, Parquet and hub datasets: lazily, in the order they stand there."""

from __future__ import annotations

import codecs
import glob
import io
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import urlsplit

from treering.corpus.records import TAB, Record, json_array, json_lines, table_rows
from treering.corpus.source import (
    COMPRESSIONS,
    EMBEDDED_PREFIX,
    FORMATS,
    HUB_PREFIX,
    Source,
    embedded,
    in_part,
    missing_field,
    split_of,
    suffixes,
    text_id,
)
from treering.corpus.streams import Receipt, open_stream
from treering.errors import TreeringError
from treering.reading import printable
from treering.recipe import check_recipe

PASSAGE_LEAST, PASSAGE_MOST = 1_000, 8_000  # characters
MOST_BLANK_LINES = 1_000_000  # one after another
MOST_ID = 4_096  # characters


@dataclass(frozen=True, slots=True)
class Document:
    """One text, and the id that decides its side of the split."""

    id: str
    text: str


def as_source(source: Source | str | os.PathLike[str]) -> Source:
    """A `Source` from a path with everything else at its default.

    Raises:
        TreeringError: the path is no Unicode text.
    """
    if isinstance(source, Source):
        return source
    path = os.fspath(source)
    return check_recipe({"path": path}, Source, printable(path))


def read_documents(
    source: Source | str | os.PathLike[str],
    *,
    receipt: Receipt | None = None,
    outside: Callable[[Document], object] | None = None,
) -> Iterator[Document]:
    """The documents of a source, one at a time; memory holds about one document, whatever the source's size.

    Plain text is cut into documents by ``source.document``:

    - ``passage`` (default): paragraphs are gathered until they have 1,000 characters, and cut at a line end
      from 8,000 on, so that texts with and without blank lines both give documents of a useful size;
    - ``paragraph``: what blank lines separate; ``line``: each line; ``file``: each file.

    JSON lines, the objects of a JSON array, and rows of CSV, TSV, Parquet and the hub are one document each: their
    ``text_field`` (or the ``paragraphs`` form of the embedded texts, joined by line ends) and their ``id_field`` if
    they have one. Documents of white space only are left out and counted on the receipt. Line ends ``\\r\\n`` of plain
    text become ``\\n``; all else is kept. Documents that are read but not of ``source.part`` go to ``outside``.

    Raises:
        TreeringError: the source is missing, empty, damaged, in another encoding or of another shape than
            said; the message names file, line and byte.
    """
    source = as_source(source)
    receipt = Receipt() if receipt is None else receipt
    return _limited(source, receipt, outside or (lambda _: None))


def training_texts(
    source: Source | str | os.PathLike[str], validation: float, calibration: float = 0.0
) -> Iterator[str]:
    """The texts that `treering.corpus.prepare` with these shares does not hold out.

    Raises:
        TreeringError: the source cannot be read (see `read_documents`), or every document is held out.
    """
    source = as_source(source)
    held_out = kept = 0
    for document in read_documents(source):
        if split_of(document.id, validation, calibration) == "train":
            kept += 1
            yield document.text
        else:
            held_out += 1
    if held_out and not kept:
        raise TreeringError(
            f"Every document of {source.path} is held out ({held_out} in all). "
            "Give more text, or train on all of it with --validation 0."
        )


def source_bytes(source: Source) -> int | None:
    """Size on disk of what a source will read, or None where that is not known beforehand."""
    if is_hub(source):
        return None
    local = (Path(path) for path, _ in source_files(source) if "://" not in path)
    return sum(path.stat().st_size for path in local if path.is_file()) or None


def _limited(source: Source, receipt: Receipt, outside: Callable[[Document], object]) -> Iterator[Document]:
    yield from itertools.islice(_documents(source, receipt, outside), source.limit)
    if source.limit is not None and not is_hub(source):
        done = {file.name for file in receipt.files}
        for path, name in source_files(source):
            if name in receipt.opened and name not in done:  # left early, but its hash is of the whole file
                with open_stream(path, name, "", receipt):
                    pass


def _documents(source: Source, receipt: Receipt, outside: Callable[[Document], object]) -> Iterator[Document]:
    if is_hub(source):
        from treering.corpus.hub import hub_rows

        found: Iterable[Document] = (_document(row, source, where) for where, row in hub_rows(source))
    else:
        found = itertools.chain.from_iterable(
            _read_file(path, name, source, receipt) for path, name in source_files(source)
        )
    nothing = True
    for document in found:
        if not document.text.strip():
            receipt.empty_documents += 1
            continue
        nothing = False
        if in_part(document.id, source.part):
            yield document
        else:
            outside(document)
    if nothing:
        size = " (0 bytes)" if not receipt.bytes_read and receipt.files else ""
        raise TreeringError(f"{source.path} is empty{size}: there is no text to read in it.")


# ---------------------------------------------------------------------------------------------- which files


def is_hub(source: Source) -> bool:
    """Whether the source is read through ``datasets`` rather than from files."""
    path = source.path
    if source.format == "hub" or path.startswith(HUB_PREFIX):
        return True
    if source.format or "://" in path or path.startswith(EMBEDDED_PREFIX) or Path(path).exists():
        return False
    plain_name = re.fullmatch(r"[\w.-]+/[\w.-]+", path) is not None and suffixes(path) == ("", "")
    return plain_name and not Path(path).parent.is_dir()


def source_files(source: Source) -> list[tuple[str, str]]:
    """Each file of a source to open, with the name that the manifest gives it."""
    path = source.path
    if path.startswith(EMBEDDED_PREFIX):
        path = str(embedded(path.removeprefix(EMBEDDED_PREFIX)))
    if "://" in path:
        return [(path, Path(urlsplit(path).path).name)]  # a whole URL may hold a secret
    if Path(path).is_dir():
        inside = (p for p in Path(path).rglob("*") if p.is_file())
        found = sorted(p for p in inside if _is_data(p.relative_to(path), source))
        if not found:
            raise TreeringError(f"The directory {path} holds no file that ends in {_known()}.")
        return [(str(p), p.relative_to(path).as_posix()) for p in found]
    if Path(path).exists():
        return [(path, Path(path).name)]
    everything = glob.glob(path, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    matches = sorted(p for p in everything if Path(p).is_file())
    if matches:
        root = os.path.commonpath([str(Path(p).parent) for p in matches])
        return [(p, Path(os.path.relpath(p, root)).as_posix()) for p in matches]
    if glob.has_magic(path):
        raise TreeringError(f"No file matches {path}.")
    raise TreeringError(f"There is no file or directory {path}. (A dataset on the hub is written hub:owner/name.)")


def _is_data(path: Path, source: Source) -> bool:
    hidden = any(part.startswith((".", "_")) for part in path.parts)
    return not hidden and (source.format is not None or suffixes(path.name)[0] in FORMATS)


def _known() -> str:
    return f"{', '.join(FORMATS)} (each also with {', '.join(COMPRESSIONS)})"


# ------------------------------------------------------------------------------------------- one file


def _read_file(path: str, name: str, source: Source, receipt: Receipt) -> Iterator[Document]:
    if any("\ud800" <= character <= "\udfff" for character in name):
        raise TreeringError(
            f"{printable(path)}: the file's name is not UTF-8, and the manifest could not hold it. Rename it."
        )
    extension, compression = suffixes(path)
    kind = source.format or FORMATS.get(extension)
    if kind is None:
        raise TreeringError(
            f"{path}: the extension {extension or '(none)'} does not say what is inside. "
            f"Known are {_known()}. For another, name the format (--format text|jsonl|json|csv|tsv|parquet)."
        )
    if kind == "parquet":
        from treering.corpus.parquet import parquet_rows

        yield from (_document(row, source, where) for where, row in parquet_rows(path, name, source, receipt))
        return
    with open_stream(path, name, compression, receipt) as stream:
        if kind == "text":
            for text in _texts(stream, path, source):
                yield Document(text_id(text), text)
        else:
            for where, row in _records(stream, path, kind, source.max_document_bytes):
                yield _document(row, source, where)


def _records(stream: IO[bytes], path: str, kind: str, limit: int) -> Iterator[Record]:
    """What a file of ``.json`` holds is seen by how it begins: one array, or an object a line."""
    if kind == "json":
        begin = cast(io.BufferedReader, stream).peek(1)
        if begin.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            return json_array(stream, path, limit)
    lines = _lines(stream, path, limit)
    if kind in ("csv", "tsv"):
        return table_rows(lines, path, "," if kind == "csv" else TAB, limit)
    return json_lines(lines, path)


def _texts(stream: IO[bytes], path: str, source: Source) -> Iterator[str]:
    if source.document == "file":
        content = stream.read(source.max_document_bytes + 1)
        if len(content) > source.max_document_bytes:
            raise _too_long(f"{path} as one document", source)
        yield _decode(content, path, 0, 1).removeprefix("\ufeff").replace("\r\n", "\n")
        return
    lines = (line for _, line in _lines(stream, path, source.max_document_bytes))
    if source.document == "line":
        yield from (line.rstrip("\n") for line in lines)
    elif source.document == "paragraph":
        yield from _gather(lines, path, source, least=1, most=None)
    else:
        yield from _gather(lines, path, source, least=PASSAGE_LEAST, most=PASSAGE_MOST)


def _gather(lines: Iterator[str], path: str, source: Source, *, least: int, most: int | None) -> Iterator[str]:
    """Lines to documents: one ends at a blank line from ``least`` characters, at any line from ``most``."""
    gathered: list[str] = []
    size, first = 0, 1
    for number, line in enumerate(lines, 1):
        blank = not line.strip()
        if blank and not gathered:
            continue
        if not gathered:
            first = number
        gathered.append(line)
        size += len(line)
        if (blank and size >= least) or (most is not None and size >= most):
            yield _joined(gathered)
            gathered, size = [], 0
        elif size > source.max_document_bytes:
            raise _too_long(f"{path}, line {first}: the paragraph that begins here", source)
    if gathered:
        yield _joined(gathered)


def _joined(lines: list[str]) -> str:
    while not lines[-1].strip():  # blank lines at the end separate documents and belong to none
        lines.pop()
    return "".join(lines).removesuffix("\n")


def _lines(stream: IO[bytes], path: str, limit: int) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, never more than ``limit`` bytes of one in memory."""
    offset = blank = 0
    for number in itertools.count(1):
        raw = stream.readline(limit + 1)
        if not raw:
            return
        if len(raw) > limit:
            raise TreeringError(
                f"{path}, line {number} (from byte {offset}): the line is longer than {_size(limit)}, "
                "the most that is read as one document. Break it up, or allow more with max_document_bytes "
                "(--max-document-mb)."
            )
        line = _decode(raw, path, offset, number)
        if number == 1:
            line = line.removeprefix("\ufeff")
        blank = blank + 1 if line.isspace() else 0
        if blank > MOST_BLANK_LINES:
            raise TreeringError(f"{path}, line {number}: {blank:,} blank lines one after another are no text.")
        yield number, line[:-2] + "\n" if line.endswith("\r\n") else line
        offset += len(raw)


def _decode(raw: bytes, path: str, offset: int, line: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if offset == 0 and raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise TreeringError(
                f"{path} is UTF-16, not UTF-8. Convert it first: iconv -f UTF-16 -t UTF-8 OLD > NEW"
            ) from None
        line += raw.count(b"\n", 0, error.start)
        raise TreeringError(
            f"{path}, line {line}, byte {offset + error.start}: 0x{raw[error.start]:02X} is not UTF-8 text "
            f"({error.reason}). Convert the file from its own encoding first, for example: "
            "iconv -f WINDOWS-1251 -t UTF-8 OLD > NEW"
        ) from None


# -------------------------------------------------------------------------------------------- one row


def _document(row: Mapping[str, Any], source: Source, where: str) -> Document:
    text = _text(row, source, where)
    if _bytes(text, "text", where) > source.max_document_bytes:
        raise _too_long(f"{where}: the document", source)
    identity = row.get(source.id_field)
    if identity is None or identity == "":
        return Document(text_id(text), text)
    if isinstance(identity, bool) or not isinstance(identity, str | int):
        raise TreeringError(
            f"{where}: the field {source.id_field!r} is a {type(identity).__name__}, not text or a whole number. Name "
            "another with id_field (--id-field); where there is none of that name, a hash of the text is the id."
        )
    identity = str(identity)
    _bytes(identity, f"field {source.id_field!r}", where)
    if len(identity) > MOST_ID:
        raise TreeringError(
            f"{where}: the field {source.id_field!r} has {len(identity):,} characters; no id is as long."
        )
    return Document(identity, text)


def _bytes(text: str, what: str, where: str) -> int:
    try:
        return len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise TreeringError(
            f"{where}: character {error.start} of the {what} is the lone surrogate "
            f"U+{ord(text[error.start]):04X}, half of a character, which no "
            "Unicode encoding can store. Repair the file where it was written."
        ) from None


def _text(row: Mapping[str, Any], source: Source, where: str) -> str:
    if source.text_field in row:
        text = row[source.text_field]
        if text is None:
            return ""
        if isinstance(text, str):
            return text
        raise TreeringError(f"{where}: the field {source.text_field!r} is a {type(text).__name__}, not text.")
    paragraphs = row.get("paragraphs")
    if isinstance(paragraphs, list) and source.text_field == "text":
        texts = [p.get("text") if isinstance(p, dict) else p for p in paragraphs]
        whole = [text for text in texts if isinstance(text, str)]
        if len(whole) == len(texts):
            return "\n".join(whole)
        raise TreeringError(f'{where}: each of "paragraphs" must be a text or an object with a "text".')
    raise missing_field(where, source, list(row))


def _too_long(what: str, source: Source) -> TreeringError:
    return TreeringError(
        f"{what} is longer than {_size(source.max_document_bytes)}. Break it up"
        + (" (document: passage does that)" if source.document in ("file", "paragraph") else "")
        + ", or allow more with max_document_bytes (--max-document-mb); "
        "tokenising needs many times that in memory."
    )


def _size(count: int) -> str:
    return f"{count / 2**20:g} MiB" if count >= 2**20 else f"{count:,} bytes"
