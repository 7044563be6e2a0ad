"""Directories that are either complete or not there."""

from __future__ import annotations

import os
import shutil
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
            f"{target} already exists with other content. Choose another output, or remove it first; nothing was written."
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
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        yield staging
        staging.chmod(0o777 & ~_umask())  # mkdtemp makes private directories
        if target.exists():
            target.rmdir()
        staging.rename(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
