from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from treering.errors import TreeringError
from treering.output import (
    explain_full_disk,
    link_or_copy,
    locked,
    replaced_directory,
    require_new,
    staged_directory,
    sync_to_disk,
    write_file,
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


def test_an_output_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(TreeringError, match="is no directory"):
        require_new(tmp_path / "file" / "deep" / "out")


def test_a_link_to_nowhere_is_in_the_way(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TreeringError, match="already exists"), staged_directory(tmp_path / "out"):
        pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("write", [staged_directory, replaced_directory])
def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch, write):
    target, synced, done = tmp_path / "out", list[Path](), list[str]()
    if write is replaced_directory:
        target.mkdir()
    fsync, rename = os.fsync, Path.rename

    def note_sync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    def note_rename(path: Path, new: Path) -> Path:
        if new == target:
            assert {path, path / "sub", path / "sub" / "file"} <= set(synced)
            done.append("renamed")
            synced.clear()
        return rename(path, new)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "rename", note_rename)
    with write(target) as staging:
        (staging / "sub").mkdir()
        (staging / "sub" / "file").write_text("x")
    assert done == ["renamed"]
    assert tmp_path in synced  # the rename itself


def test_private_files_of_a_library_become_readable(tmp_path):
    mask = os.umask(0o022)
    try:
        with staged_directory(tmp_path / "out") as staging:
            (staging / "file").touch(mode=0o600)
    finally:
        os.umask(mask)
    assert (tmp_path / "out" / "file").stat().st_mode & 0o777 == 0o644


_HOLD = """
import sys, time
from treering.output import staged_directory
with staged_directory(sys.argv[1]) as staging:
    (staging / "file").write_text("half")
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writer(tmp_path):
    """Another process, in the middle of writing ``out``."""
    process = subprocess.Popen([sys.executable, "-c", _HOLD, tmp_path / "out"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_an_output_has_one_writer_at_a_time(tmp_path, writer):
    with (
        pytest.raises(TreeringError, match=rf"being written already \(pid {writer.pid}\)"),
        staged_directory(tmp_path / "out"),
    ):
        pass
    with staged_directory(tmp_path / "other") as staging:  # no business of theirs
        (staging / "file").touch()


def test_a_writer_that_was_killed_leaves_neither_lock_nor_files(tmp_path, writer):
    writer.kill()
    writer.wait()
    assert any(path.suffix == ".partial" for path in tmp_path.iterdir())
    with staged_directory(tmp_path / "out") as staging:
        (staging / "file").write_text("whole")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    assert (tmp_path / "out" / "file").read_text() == "whole"


def test_a_replacement_that_died_between_its_renames_is_undone(tmp_path, old):
    old.rename(tmp_path / ".out.abcd_123.replaced")
    (tmp_path / ".out.abcd_123.partial").mkdir()
    with locked(old):
        assert (old / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_a_replacement_that_died_after_them_leaves_nothing_of_the_old(tmp_path, old):
    (tmp_path / ".out.abcd_123.replaced").mkdir()
    (tmp_path / ".out.abcd_123.replaced" / "expert-withdrawn.safetensors").touch()
    (tmp_path / ".out.more.abcd_123.partial").mkdir()  # of another output
    with locked(old), locked(old):
        pass
    assert sorted(tmp_path.iterdir()) == [tmp_path / ".out.more.abcd_123.partial", old]


def test_links_are_not_followed_and_nothing_is_written_over(tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    link_or_copy(tmp_path / "link", tmp_path / "kept")
    assert (tmp_path / "kept").readlink() == tmp_path / "secret"
    with pytest.raises(FileExistsError):
        link_or_copy(tmp_path / "secret", tmp_path / "precious")
    (tmp_path / "way-out").symlink_to(tmp_path / "precious")
    with pytest.raises(FileExistsError):
        link_or_copy(tmp_path / "secret", tmp_path / "way-out")
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_file_is_written_whole_or_stays(tmp_path, monkeypatch):
    write_file(tmp_path / "file", "old")
    write_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_file(tmp_path / "file", "newest")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"new"
