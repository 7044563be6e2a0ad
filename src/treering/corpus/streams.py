"""Bytes of a file, decompressed on the way, with a receipt for what was read."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any, BinaryIO, cast

from treering.errors import TreeringError

_CHUNK = 1 << 20


@dataclass(frozen=True)
class FileRead:
    """One file as it lay on the disk: name without the machine's directories, size and SHA-256."""

    name: str
    bytes: int
    sha256: str


@dataclass
class Receipt:
    """What has been read so far; fills while documents are drawn."""

    files: list[FileRead] = field(default_factory=list)
    opened: set[str] = field(default_factory=set)
    bytes_read: int = 0
    empty_documents: int = 0


@contextmanager
def open_stream(path: str, name: str, compression: str, receipt: Receipt) -> Iterator[IO[bytes]]:
    """Open a local path or a URL for reading, decompressed; on a clean exit the whole file is on the receipt.

    Raises:
        TreeringError: the file cannot be opened, or its compressed data is damaged or cut short.
    """
    receipt.opened.add(name)
    with _open_raw(path) as raw:
        counted = _Counted(raw, receipt)
        opened = _DECOMPRESSORS[compression](counted)
        try:
            yield opened
            while opened.read(_CHUNK):  # a reader that stops early still wants to know of damage
                pass
        except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
            raise _damaged(path, compression, error) from None
        except OSError as error:
            if error.errno is None and compression:  # bz2 reports broken data so
                raise _damaged(path, compression, error) from None
            raise
        while counted.read(_CHUNK):  # what follows the compressed stream
            pass
        receipt.files.append(FileRead(name, counted.count, counted.hash.hexdigest()))


def _open_raw(path: str) -> IO[bytes]:
    if "://" not in path:
        return open(path, "rb", buffering=0)  # noqa: PTH123 - the caller's with; /dev/stdin works too
    import fsspec

    try:
        return fsspec.open(path, "rb").open()
    except Exception as error:  # each protocol has its own exceptions
        raise TreeringError(f"{path} could not be opened: {type(error).__name__}: {error}") from error


def _damaged(path: str, compression: str, error: Exception) -> TreeringError:
    return TreeringError(
        f"{path} is not a whole {compression} file: {error}. It may be cut short or damaged; copy or download it again."
    )


class _Counted(io.RawIOBase):
    """Counts and hashes the raw bytes that pass through."""

    def __init__(self, raw: IO[bytes], receipt: Receipt) -> None:
        self.raw, self.receipt = raw, receipt
        self.count, self.hash = 0, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.raw.read(len(buffer))
        buffer[: len(data)] = data
        self.hash.update(data)
        self.count += len(data)
        self.receipt.bytes_read += len(data)
        return len(data)


class _Zstandard(io.RawIOBase):
    """All frames of a zstd file; unlike zstandard's own reader it notices a file that is cut short."""

    def __init__(self, raw: io.RawIOBase) -> None:
        import zstandard

        self.raw, self.error = raw, zstandard.ZstdError
        self.new = zstandard.ZstdDecompressor().decompressobj
        self.frame: Any = None
        self.pending, self.input = b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self.pending:
            if not self.input:
                self.input = self.raw.read(_CHUNK // 8) or b""
            if not self.input:
                if self.frame is not None:
                    raise EOFError("the last frame has no end")
                return 0
            self.frame = self.frame or self.new()
            try:
                self.pending = self.frame.decompress(self.input)
            except self.error as error:
                raise EOFError(str(error)) from None
            self.input = self.frame.unused_data
            if self.frame.eof:
                self.frame = None
        count = min(len(buffer), len(self.pending))
        buffer[:count] = self.pending[:count]
        self.pending = self.pending[count:]
        return count


_DECOMPRESSORS: dict[str, Callable[[io.RawIOBase], IO[bytes]]] = {
    "": lambda raw: io.BufferedReader(raw, _CHUNK),
    ".gz": lambda raw: cast(IO[bytes], gzip.GzipFile(fileobj=cast(BinaryIO, raw))),
    ".bz2": lambda raw: bz2.BZ2File(cast(BinaryIO, raw)),
    ".xz": lambda raw: lzma.LZMAFile(cast(BinaryIO, raw)),  # noqa: SIM115 - the caller closes raw
    ".zst": lambda raw: io.BufferedReader(_Zstandard(raw), _CHUNK),
}
