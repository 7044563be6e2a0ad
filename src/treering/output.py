"""Directories that are either complete or not there."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from treering.errors import TreeringError


def require_new(target: str | os.PathLike[str]) -> Path:
    """Return ``target`` as a path that nothing stands at yet, or only an empty directory.

    Raises:
        TreeringError: the path exists with content; nothing was touched.
    """
    target = Path(target)
    if target.is_dir() and not any(target.iterdir()):
        return target
    if target.exists():
        raise TreeringError(
            f"{target} already exists with other content. Choose another output, or remove it; nothing was written."
        )
    return target


@contextmanager
def staged_directory(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a fresh directory beside ``target``; it becomes ``target`` by one rename if the block succeeds.

    If the block raises, the staging directory is removed and ``target`` is as it was before.

    Raises:
        TreeringError: ``target`` already exists with content.
    """
    target = require_new(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = _staging(target)
    try:
        yield staging
        staging.chmod(0o777 & ~_umask())  # mkdtemp makes private directories
        if target.exists():
            target.rmdir()
        staging.rename(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


@contextmanager
def replaced_directory(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a fresh directory beside ``target``; it takes the place of ``target`` by renames if the block succeeds.

    If the block or a rename fails, ``target`` is as it was before. A machine that stops between the two renames leaves
    both directories whole beside each other, the old one as ``.TARGET.*.replaced``.

    Raises:
        OSError: ``target`` is not there, cannot be renamed, or what it was cannot be removed.
    """
    target = Path(target).resolve(strict=True)  # of a link, what it points to is replaced
    staging = _staging(target)
    replaced = staging.with_suffix(".replaced")
    try:
        yield staging
        staging.chmod(stat.S_IMODE(target.stat().st_mode))
        sync_to_disk(staging)
        target.rename(replaced)
        staging.rename(target)
    finally:
        if not target.exists():
            replaced.rename(target)
        shutil.rmtree(staging, ignore_errors=True)
        if replaced.exists():
            shutil.rmtree(replaced)


def link_or_copy(source: Path, target: Path) -> None:
    """Let the file ``source`` stand at ``target`` too: as a hard link, or as a copy where there can be none.

    Of a link, neither name may be written to afterwards.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _staging(target: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_to_disk(directory: Path) -> None:
    """Ask the operating system to write every file below ``directory`` out, so that a rename never outruns content."""
    for path in [*(path for path in directory.rglob("*") if not path.is_symlink()), directory]:
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
