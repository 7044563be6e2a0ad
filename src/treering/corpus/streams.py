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
from typing import IO, Any, BinaryIO, Protocol, cast

from treering.errors import TreeringError

_CHUNK = 1 << 20
_PIECE = 1 << 10  # compressed bytes unpacked at once
_WINDOW = 1 << 28  # bytes of memory for what a stream refers back to; xz -9 takes 65 MiB


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
    if "memory" in str(error).lower():
        return TreeringError(
            f"{path} takes more than {_WINDOW >> 20} MiB of memory to unpack ({error}). Pack it again with a smaller "
            "window or dictionary (zstd --long, xz --lzma2=dict=…)."
        )
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


class _Decompressor(Protocol):
    """One member of a compressed file, as bz2 and lzma read it."""

    eof: bool
    needs_input: bool
    unused_data: bytes

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Zstandard:
    """A frame of a zstd file. What it returns at once is bounded by what it is given: 128 KiB for 4 bytes, at most."""

    needs_input = True

    def __init__(self) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        self._frame = zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj()

    @property
    def eof(self) -> bool:
        return self._frame.eof

    @property
    def unused_data(self) -> bytes:
        return self._frame.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        try:
            return self._frame.decompress(data)
        except self._error as error:
            raise EOFError(str(error)) from None


class _Members(io.RawIOBase):
    """All members of a compressed file, a bounded piece at a time.

    Unlike the readers that come with Python and zstandard, it tells a file that is cut short, and what stands after a
    member and is none.
    """

    def __init__(self, raw: io.RawIOBase, new: Callable[[], _Decompressor]) -> None:
        self.raw, self.new = io.BufferedReader(raw, _CHUNK // 8), new
        self.member: _Decompressor | None = None
        self.input, self.output = b"", memoryview(b"")
        self.members = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self.output:
            if not self.input and (self.member is None or self.member.needs_input):
                self.input = self.raw.read(_PIECE)
                if not self.input:
                    if self.member is not None:
                        raise EOFError("the last part of it has no end")
                    return 0
            if self.member is None:
                if self.members:
                    self.input = self.input.lstrip(b"\0")  # tapes and xz pad with zeros
                if not self.input:
                    continue
                self.member, self.members = self.new(), self.members + 1
            self.output = memoryview(self.member.decompress(self.input, _CHUNK))
            self.input = self.member.unused_data if self.member.eof else b""
            self.member = None if self.member.eof else self.member
        count = min(len(buffer), len(self.output))
        buffer[:count] = self.output[:count]
        self.output = self.output[count:]
        return count


def _unpack(new: Callable[[], Any]) -> Callable[[io.RawIOBase], IO[bytes]]:
    return lambda raw: io.BufferedReader(_Members(raw, new), _CHUNK)


_DECOMPRESSORS: dict[str, Callable[[io.RawIOBase], IO[bytes]]] = {
    "": lambda raw: io.BufferedReader(raw, _CHUNK),
    ".gz": lambda raw: cast(IO[bytes], gzip.GzipFile(fileobj=cast(BinaryIO, raw))),
    ".bz2": _unpack(bz2.BZ2Decompressor),
    ".xz": _unpack(lambda: lzma.LZMADecompressor(memlimit=_WINDOW)),
    ".zst": _unpack(_Zstandard),
}
