"""What is written: complete and on the disk, or not there at all; by one process at a time."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from treering.errors import TreeringError

try:
    import fcntl
except ImportError:  # Windows: no lock, so that starting an output twice is the user's to avoid
    fcntl = None  # type: ignore[assignment]

CLOCK = 2.0
"""Seconds by which the clocks of files and of processes may differ."""

_held: set[Path] = set()
"""Outputs that this process has locked."""


def require_new(target: str | os.PathLike[str]) -> Path:
    """Return ``target`` as a path that nothing stands at yet, or only an empty directory.

    Raises:
        TreeringError: the path exists with content, or lies below a file; nothing was touched.
    """
    target = Path(target)
    existing = next(path for path in (target.absolute(), *target.absolute().parents) if os.path.lexists(path))
    if existing != target.absolute() and not existing.is_dir():
        raise TreeringError(f"{target} cannot be made: {existing} is no directory. Choose another output.")
    if target.is_dir() and not any(target.iterdir()):
        return target
    if os.path.lexists(target):
        raise TreeringError(
            f"{target} already exists with other content. Choose another output, or remove it; nothing was written."
        )
    return target


@contextmanager
def locked(target: str | os.PathLike[str]) -> Iterator[None]:
    """Let no other process write ``target`` inside this block; what one that died left of it is cleaned up first.

    The operating system gives the lock (``.TARGET.lock``) back when a process ends, however it ends. In one process
    the block may be entered again inside itself.

    Raises:
        TreeringError: another process writes there; its number is told.
    """
    target = Path(target).absolute()
    if target in _held:
        yield
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.with_name(f".{target.name}.lock")
    descriptor = _lock(path, target)
    _held.add(target)
    try:
        _clean(target)
        yield
    finally:
        _held.discard(target)
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(path: Path, target: Path) -> int:
    """The descriptor of a lock file that this process holds; it carries the process's number."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            if fcntl:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it before may have removed the file that was opened here.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
                return descriptor
            os.close(descriptor)
        except OSError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise TreeringError(
                f"{target} is being written already (pid {holder or 'unknown'}). Wait for that process, or stop it."
            ) from None


def recover(target: str | os.PathLike[str]) -> None:
    """Put a directory back that a process was replacing when it died, for those who only read it.

    Raises:
        TreeringError: another process writes there.
    """
    target = Path(target).absolute()
    if not os.path.lexists(target) and any(path.suffix == ".replaced" for path in _leftovers(target)):
        with locked(target):
            pass


def _leftovers(target: Path) -> list[Path]:
    """What processes that died left beside ``target``."""
    leftover = re.compile(rf"\.{re.escape(target.name)}\.[a-z0-9_]{{8}}\.(partial|replaced)")
    return [path for path in target.parent.glob(".*") if leftover.fullmatch(path.name)]


def _clean(target: Path) -> None:
    """Remove what processes that died left beside ``target``, which is locked; a directory half replaced comes back."""
    for path in _leftovers(target):
        if path.suffix == ".replaced" and not os.path.lexists(target):
            path.rename(target)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def staged_directory(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a fresh directory beside ``target``; it becomes ``target`` by one rename if the block succeeds.

    Everything in it is on the disk before the rename, and the rename before this returns. If the block raises, the
    staging directory is removed and ``target`` is as it was before.

    Raises:
        TreeringError: ``target`` already exists with content, or another process writes it.
    """
    target = require_new(target)
    with locked(target):
        target = require_new(target)  # nobody else can make it from here on
        staging = _staging(target)
        try:
            yield staging
            staging.chmod(0o777 & ~_umask())  # mkdtemp makes private directories
            _open_to_readers(staging)
            sync_to_disk(staging)
            if target.exists():
                target.rmdir()
            staging.rename(target)
            _sync(target.parent)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


@contextmanager
def replaced_directory(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a fresh directory beside ``target``; it takes the place of ``target`` by renames if the block succeeds.

    If the block or a rename fails, ``target`` is as it was before. A machine that stops between the two renames leaves
    both directories whole beside each other, the old one as ``.TARGET.*.replaced``; whoever writes there next puts it
    back (see `locked`).

    Raises:
        TreeringError: another process writes there.
        OSError: ``target`` is not there, cannot be renamed, or what it was cannot be removed.
    """
    target = Path(target).resolve()  # of a link, what it points to is replaced
    with locked(target):
        target.stat()
        staging = _staging(target)
        replaced = staging.with_suffix(".replaced")
        try:
            yield staging
            staging.chmod(stat.S_IMODE(target.stat().st_mode))
            _open_to_readers(staging)
            sync_to_disk(staging)
            target.rename(replaced)
            staging.rename(target)
            _sync(target.parent)
        finally:
            if not target.exists():
                replaced.rename(target)
            shutil.rmtree(staging, ignore_errors=True)
            if replaced.exists():
                shutil.rmtree(replaced)


def unfinished_of(output: Path) -> Path:
    """Where the run that makes ``output`` keeps what it goes on from."""
    return output.with_name(f"{output.name}.unfinished")


def writer_of(target: str | os.PathLike[str]) -> int | None:
    """The number of the process on this machine that holds `locked` for ``target``; nothing is locked to find that out.

    One that began after the lock was taken has only the number of another that died.
    """
    target = Path(target).absolute()
    path = target.with_name(f".{target.name}.lock")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        number = int(os.pread(descriptor, 32, 0))
        taken = os.fstat(descriptor).st_mtime
        return number if psutil.Process(number).create_time() <= taken + CLOCK else None
    except (OSError, ValueError, OverflowError, psutil.Error):
        return None
    finally:
        os.close(descriptor)


def write_file(path: str | os.PathLike[str], content: str | bytes, synced: bool = True) -> None:
    """Let a file hold ``content``: whole and on the disk, or as it was before.

    Args:
        synced: false for what nobody needs after the machine stops.
    """
    path = Path(path)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            if synced:
                file.flush()
                os.fsync(file.fileno())
        Path(name).replace(path)
        if synced:
            _sync(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def require_common(path: Path, own: Mapping[str, Any]) -> None:
    """Note in a file what all that is made beside it has in common, or find that it is the same.

    Raises:
        TreeringError: what is there has something else in common; it is named.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(own, indent=1))
    elif others := [name for name, value in json.loads(path.read_text()).items() if own.get(name) != value]:
        raise TreeringError(
            f"{path.parent} holds runs with another {others[0]} than the recipe's. Choose another output, or remove it."
        )


def link_or_copy(source: Path, target: Path) -> None:
    """Let the file ``source`` stand at ``target`` too: as a hard link, or as a copy where there can be none.

    Of a hard link, neither name may be written to afterwards. A symbolic link stays one and is never followed.

    Raises:
        FileExistsError: something stands at ``target``; it is never written over.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:
        if source.is_symlink():
            target.symlink_to(source.readlink())
            return
        with source.open("rb") as content, target.open("xb") as copy:
            shutil.copyfileobj(content, copy)
        shutil.copystat(source, target)


def _staging(target: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _open_to_readers(directory: Path) -> None:
    """Give files that a library made private the permissions of any other new file; hard links are others' too."""
    allowed = 0o666 & ~_umask()
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_nlink == 1:
            path.chmod(stat.S_IMODE(path.stat().st_mode) | allowed)


def sync_to_disk(directory: Path) -> None:
    """Ask the operating system to write every file below ``directory`` out, so that a rename never outruns content."""
    for path in [*(path for path in directory.rglob("*") if not path.is_symlink()), directory]:
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explain_full_disk(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever a writer raises when the disk of ``directory`` is full into one clear error.

    torch and safetensors wrap the operating system's error in exceptions of their own, without its number.

    Raises:
        TreeringError: there was no space left; names the directory and the free space.
    """
    try:
        yield
    except Exception as error:
        if not any(_says_disk_full(cause) for cause in _causes(error)):
            raise
        place = Path(directory).absolute()
        existing = next(path for path in (place, *place.parents) if path.exists())
        free = shutil.disk_usage(existing).free / 2**20
        raise TreeringError(
            f"No space left on the disk of {directory} ({free:.0f} MiB free). What was complete before is still there; "
            "make room and run the same command again."
        ) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those during whose handling it was raised."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _says_disk_full(error: BaseException) -> bool:
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return True
    # PyTorch's zip writer says only that a write came out short.
    short = ("PytorchStreamWriter", "unexpected pos", "iostream error")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in short)
