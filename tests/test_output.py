from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from treering.errors import TreeringError
from treering.output import (
    explain_full_disk,
    link_or_copy,
    replaced_directory,
    require_new,
    staged_directory,
    sync_to_disk,
)


def test_directory_appears_only_when_complete(tmp_path):
    target = tmp_path / "deep" / "out"
    with staged_directory(target) as staging:
        (staging / "file").write_text("x")
        assert not target.exists()
    assert (target / "file").read_text() == "x"
    assert list(target.parent.iterdir()) == [target]


def test_failure_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), staged_directory(tmp_path / "out") as staging:
        (staging / "file").write_text("x")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_existing_content_is_refused_and_kept(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(TreeringError, match="already exists"), staged_directory(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "mine").read_text() == "precious"


def test_empty_directory_and_new_path_are_fine(tmp_path):
    (tmp_path / "empty").mkdir()
    with staged_directory(tmp_path / "empty") as staging:
        (staging / "file").touch()
    assert (tmp_path / "empty" / "file").exists()
    assert require_new(tmp_path / "new") == tmp_path / "new"


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(TreeringError):
        require_new(tmp_path / "out")


def test_directory_has_ordinary_permissions(tmp_path):
    with staged_directory(tmp_path / "out"):
        pass
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.fixture
def old(tmp_path) -> Path:
    """A directory that shall be replaced."""
    old = tmp_path / "out"
    old.mkdir(mode=0o750)
    (old / "file").write_text("old")
    return old


def test_a_directory_is_replaced_when_complete(tmp_path, old):
    with replaced_directory(old) as staging:
        (staging / "new").write_text("new")
        assert (old / "file").read_text() == "old"
    assert [path.name for path in old.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [old]
    assert old.stat().st_mode & 0o777 == 0o750


def test_failure_leaves_the_directory_that_should_be_replaced(tmp_path, old):
    with pytest.raises(KeyboardInterrupt), replaced_directory(old) as staging:
        (staging / "new").write_text("new")
        raise KeyboardInterrupt
    assert (old / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_rename_that_fails_leaves_the_old_directory(tmp_path, old, monkeypatch, failing):
    rename, calls = Path.rename, list[Path]()

    def fail_once(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == failing:
            raise OSError(errno.EBUSY, "Device or resource busy")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OSError, match="busy"), replaced_directory(old) as staging:
        (staging / "new").write_text("new")
    assert (old / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_what_a_link_points_to_is_replaced(tmp_path, old):
    link = tmp_path / "link"
    link.symlink_to(old)
    with replaced_directory(link) as staging:
        (staging / "new").write_text("new")
    assert link.is_symlink()
    assert (old / "new").exists()


def test_nothing_can_be_replaced_where_nothing_is(tmp_path):
    with pytest.raises(FileNotFoundError), replaced_directory(tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())


def test_link_or_copy(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.write_text("content")
    link_or_copy(source, tmp_path / "deep" / "link")
    assert source.samefile(tmp_path / "deep" / "link")

    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    link_or_copy(source, tmp_path / "copy")
    assert not source.samefile(tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "content"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed writing file data/0"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 796096 vs 795988"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_full_disk_is_explained(tmp_path, error):
    with pytest.raises(TreeringError, match="No space left on the disk"), explain_full_disk(tmp_path):
        raise error


def test_full_disk_of_a_directory_not_made_yet(tmp_path):
    with pytest.raises(TreeringError, match="No space left on the disk"), explain_full_disk(tmp_path / "a" / "b"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_is_found_behind_another_error(tmp_path):
    with pytest.raises(TreeringError, match="No space left on the disk"), explain_full_disk(tmp_path):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise ValueError("could not close the file")


def test_other_errors_pass_through(tmp_path):
    with pytest.raises(ZeroDivisionError), explain_full_disk(tmp_path):
        raise ZeroDivisionError


def test_sync_to_disk_takes_nested_directories(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_text("x")
    sync_to_disk(tmp_path)
