"""What happens to the disk between two starts of a run: whatever it is, the second ends as one never disturbed."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from treering.backbone import PRESETS, dock, gpt_neox
from treering.errors import Interrupted, TreeringError
from treering.output import locked
from treering.seal import damage, seal
from treering.training import Training, progress, train
from treering.training import run as run_module
from treering.training.checkpoints import AtomicTrainer
from treering.training.record import read_record, write_record
from treering.training.unfinished import first_difference, is_complete

SETTINGS = Training(tokens=2048, batch_tokens=256, micro_batch_tokens=128, evaluations=2, checkpoint_steps=3)


def flip(path, bit=0, at=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 1 << bit
    path.write_bytes(content)


def empty(directory):
    shutil.rmtree(directory)
    directory.mkdir()


def replace_by_a_file(directory):
    shutil.rmtree(directory)
    directory.write_text("not a checkpoint")


DAMAGE = {
    "optimizer.pt deleted": lambda c: (c / "optimizer.pt").unlink(),
    "optimizer.pt flipped": lambda c: flip(c / "optimizer.pt"),
    "optimizer.pt cut": lambda c: os.truncate(c / "optimizer.pt", 1000),
    "scheduler.pt deleted": lambda c: (c / "scheduler.pt").unlink(),
    "rng_state.pth deleted": lambda c: (c / "rng_state.pth").unlink(),
    "rng_state.pth flipped": lambda c: flip(c / "rng_state.pth"),
    "trainer_state.json flipped": lambda c: flip(c / "trainer_state.json"),
    "trainer_state.json deleted": lambda c: (c / "trainer_state.json").unlink(),
    "trained.safetensors flipped": lambda c: flip(c / "trained.safetensors"),
    "trained.safetensors empty": lambda c: os.truncate(c / "trained.safetensors", 0),
    "best.safetensors flipped": lambda c: flip(c / "best.safetensors"),
    "best.safetensors deleted": lambda c: (c / "best.safetensors").unlink(),
    "loss.json deleted": lambda c: (c / "loss.json").unlink(),
    "seal.json deleted": lambda c: (c / "seal.json").unlink(),
    "seal.json flipped": lambda c: flip(c / "seal.json"),
    "all deleted": empty,
    "a file": replace_by_a_file,
}


@pytest.fixture(scope="module")
def run(tokenizer, corpus, substrate):
    """``run(output, settings)``: what the run printed, from a model that is each time the same."""

    def start(output, settings=SETTINGS, **more):
        torch.manual_seed(0)
        config = gpt_neox(PRESETS["tiny"])
        config.vocab_size = len(tokenizer)
        console = Console(file=io.StringIO(), width=500)
        train(dock(config, substrate, tokenizer), tokenizer, corpus, output, settings, console=console, **more)
        return console.file.getvalue()

    return start


def die_at(patch, step, error=KeyboardInterrupt):
    """Let the process die as it begins a step, counted from 0."""

    def die(trainer, *args, **kwargs):
        if trainer.state.global_step == step:
            raise error
        return AtomicTrainer.__base__.training_step(trainer, *args, **kwargs)

    patch.setattr(AtomicTrainer, "training_step", die)


@pytest.fixture(scope="module")
def kept(run, tmp_path_factory):
    """A finished run ``whole``, and ``parts.unfinished`` of the same, which died with checkpoints 3 and 6."""
    folder = tmp_path_factory.mktemp("runs")
    run(folder / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die_at(patch, 7)
        run(folder / "parts")
    return folder


@pytest.fixture
def parts(kept, tmp_path):
    shutil.copytree(kept / "parts.unfinished", tmp_path / "parts.unfinished")
    return tmp_path / "parts"


def losses(directory):
    history = json.loads((directory / "history.json").read_text())
    return [(entry["step"], entry.get("loss"), entry.get("eval_loss")) for entry in history]


def same(kept, parts):
    """Whether the run ended as one that was never disturbed, and left nothing else."""
    assert sorted(path.name for path in parts.parent.iterdir()) == [parts.name]
    assert losses(parts) == losses(kept / "whole")
    files = [{path.name: path.read_bytes() for path in place.iterdir()} for place in (parts, kept / "whole")]
    times = ("history.json", "training.json")  # with the seconds that it took
    return all(files[0][name] == files[1][name] for name in files[1] if name not in times)


def test_a_checkpoint_has_a_seal_and_ordinary_permissions(parts):
    unfinished = parts.with_name("parts.unfinished")
    for name in ("checkpoint-3", "checkpoint-6"):
        assert damage(unfinished / name) is None
        sealed = set(json.loads((unfinished / name / "seal.json").read_text()))
        assert sealed >= {"trained.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    mask = os.umask(0)
    os.umask(mask)
    for path in unfinished.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~mask, path


def test_undamaged_it_goes_on_from_the_newest(run, kept, parts):
    assert "going on from step 6" in run(parts)
    assert same(kept, parts)


@pytest.mark.parametrize("fault", DAMAGE)
def test_a_damaged_checkpoint_is_told_and_put_aside_and_the_older_one_used(run, kept, parts, fault):
    DAMAGE[fault](parts.with_name("parts.unfinished") / "checkpoint-6")
    said = run(parts)
    assert "checkpoint-6 cannot be used: " in said and "put aside as checkpoint-6.damaged" in said
    assert "going on from step 3" in said
    assert same(kept, parts)


def test_what_was_put_aside_stays_until_the_run_is_finished(run, kept, parts, monkeypatch):
    unfinished = parts.with_name("parts.unfinished")
    flip(unfinished / "checkpoint-6" / "optimizer.pt")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die_at(patch, 7)
        run(parts)
    assert {path.name for path in unfinished.glob("checkpoint-*")} == {
        "checkpoint-3",
        "checkpoint-6",
        "checkpoint-6.damaged",
    }
    flip(unfinished / "checkpoint-6" / "optimizer.pt")
    assert "put aside as checkpoint-6.damaged" in run(parts)
    assert same(kept, parts)


def test_without_an_intact_checkpoint_the_run_begins_anew_and_says_so(run, kept, parts):
    for name in ("checkpoint-3", "checkpoint-6"):
        flip(parts.with_name("parts.unfinished") / name / "trained.safetensors")
    said = run(parts)
    assert "no intact checkpoint is left: the run begins anew" in said and "going on" not in said
    assert same(kept, parts)


RECORDS = {
    "flipped": lambda path: flip(path, bit=1),
    "flipped at the end": lambda path: flip(path, at=0.99),
    "empty": lambda path: path.write_text(""),
    "deleted": lambda path: path.unlink(),
    "bytes": lambda path: path.write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("file", ["run.json", "run.copy.json"])
@pytest.mark.parametrize("fault", RECORDS)
def test_a_damaged_record_of_the_run_is_mended_from_its_copy(run, kept, parts, file, fault):
    RECORDS[fault](parts.with_name("parts.unfinished") / file)
    said = run(parts)
    assert f"{file} was damaged or missing; it was made again from its copy" in said
    assert "going on from step 6" in said
    assert same(kept, parts)


def test_where_records_differ_is_told():
    assert first_difference({"a": {"b": 1}, "c": [2]}, {"a": {"b": 1}, "c": [2]}) is None
    assert first_difference({"a": {"b": 1}}, {"a": {"b": "\x1b"}}) == r'a.b: 1 there, "\u001b" here'
    assert first_difference({"a": 1, "b": 2}, {"a": 1}) == "b: 2 there, null here"
    assert first_difference({"a": 1}, {"a": 1, "b": None}) is None


def test_a_directory_that_does_not_say_whose_it_is_is_left_alone(run, parts):
    unfinished = parts.with_name("parts.unfinished")
    for file in ("run.json", "run.copy.json"):
        (unfinished / file).write_text("{}")
    before = sorted(unfinished.rglob("*"))
    with pytest.raises(TreeringError, match="unfinished run of another recipe or another version"):
        run(parts)
    assert sorted(unfinished.rglob("*")) == before


def test_every_byte_of_a_record_counts(tmp_path):
    console = Console(file=io.StringIO(), width=500)
    path = tmp_path / "run.json"
    value = {"seed": 1, "origin": {"names": ["ё"]}}
    write_record(path, value)
    content = path.read_bytes()
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        assert read_record(path, console) == value
    path.write_bytes(damaged)
    (tmp_path / "run.copy.json").unlink()
    assert read_record(path, console) is None


class Code:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_strangers_pickle_is_never_run(run, parts, name):
    checkpoint = parts.with_name("parts.unfinished") / "checkpoint-6"
    mark = parts.with_name("opened")
    (checkpoint / name).write_bytes(pickle.dumps(Code(f"touch {mark}")))
    (checkpoint / "seal.json").unlink()
    seal(checkpoint)  # a stranger can do that too
    with pytest.raises(TreeringError, match=r"something else than numbers.*not opened"):
        run(parts)
    assert not mark.exists()


def test_leftovers_of_a_killed_process_are_cleaned(run, kept, parts):
    (parts.with_name("parts.unfinished") / ".checkpoint-8.abcdefgh.partial" / "checkpoint-8").mkdir(parents=True)
    (parts.with_name(".parts.abcdefgh.partial")).mkdir()
    run(parts)
    assert same(kept, parts)


def test_killed_between_the_output_and_the_cleaning_it_is_complete(run, kept, tmp_path, monkeypatch):
    def die(*directories):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module, "clean", die)
        run(tmp_path / "parts")
    assert (tmp_path / "parts").exists() and not is_complete(tmp_path / "parts")
    with pytest.raises(TreeringError, match="already exists"):
        run(tmp_path / "parts", SETTINGS.model_copy(update={"seed": 1}))
    run(tmp_path / "parts")
    assert is_complete(tmp_path / "parts") and same(kept, tmp_path / "parts")
    with pytest.raises(TreeringError, match="already exists"):
        run(tmp_path / "parts")


def test_nothing_is_taken_away_before_the_output_is_on_the_disk(run, tmp_path, monkeypatch):
    events = []
    fsync, rename, clean = os.fsync, Path.rename, run_module.clean
    monkeypatch.setattr(
        os, "fsync", lambda number: (events.append(str(Path(f"/proc/self/fd/{number}").readlink())), fsync(number))
    )
    monkeypatch.setattr(
        Path, "rename", lambda self, target: (events.append(("rename", str(target))), rename(self, target))[1]
    )
    monkeypatch.setattr(run_module, "clean", lambda *places: (events.append("clean"), clean(*places)))
    run(tmp_path / "out")
    renamed, cleaned = events.index(("rename", str(tmp_path / "out"))), events.index("clean")
    synced = {Path(event).name for event in events[:renamed] if isinstance(event, str)}
    assert {path.name for path in (tmp_path / "out").iterdir()} <= synced
    assert renamed < events.index(str(tmp_path), renamed) < cleaned


HOLDER = """
import sys, time
from treering.output import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_an_output_that_another_process_makes_is_refused(run, kept, parts):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, parts], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TreeringError, match=rf"parts is being written already \(pid {holder.pid}\)"):
            run(parts)
    finally:
        holder.kill()
        holder.wait()
    run(parts)  # a crash leaves no lock behind
    assert same(kept, parts)


def test_an_output_below_a_file_is_told(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(TreeringError, match=r"cannot be made: .*file is no directory"):
        run(tmp_path / "file" / "below" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_output_is_locked_from_the_begin_to_the_end(run, tmp_path, monkeypatch):
    held = []

    def look(function):
        def looked(*args, **kwargs):
            with (tmp_path / ".out.lock").open() as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held.append(function.__name__)
            return function(*args, **kwargs)

        return looked

    for name in ("validation_blocks", "optimise", "export", "clean"):
        monkeypatch.setattr(run_module, name, look(getattr(run_module, name)))
    run(tmp_path / "out")
    assert held == ["validation_blocks", "optimise", "export", "clean"]
    with locked(tmp_path / "out"):
        pass


class Time:
    """A clock on which every look takes a minute."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        self.now += 60
        return self.now


def test_checkpoints_come_by_time_and_change_nothing(run, kept, tmp_path, monkeypatch):
    """A minute a step, and a checkpoint after two and a half."""
    saved = []
    save = AtomicTrainer._save_checkpoint
    monkeypatch.setattr(
        AtomicTrainer, "_save_checkpoint", lambda self, *args: (saved.append(self.state.global_step), save(self, *args))
    )
    clock = Time()
    monkeypatch.setattr(progress, "time", type("time", (), {"monotonic": clock.monotonic, "perf_counter": lambda: 0.0}))
    settings = SETTINGS.model_copy(update={"checkpoint_steps": 100, "checkpoint_minutes": 2.5})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die_at(patch, 7)
        run(tmp_path / "parts", settings)
    assert saved == [3, 6]
    run(tmp_path / "parts", settings)
    weights = [(place / "model.safetensors").read_bytes() for place in (tmp_path / "parts", kept / "whole")]
    assert weights[0] == weights[1]
    assert losses(tmp_path / "parts") == losses(kept / "whole")


def test_a_run_shorter_than_both_has_no_checkpoint(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die_at(patch, 7)
        run(tmp_path / "out", SETTINGS.model_copy(update={"checkpoint_steps": 100}))
    assert not list((tmp_path / "out.unfinished").glob("checkpoint-*"))


def test_the_log_goes_on_as_if_never_stopped(run, tmp_path, monkeypatch):
    """Entries of three steps each, stopped within one."""
    arguments = run_module._arguments

    def by_threes(*args):
        made = arguments(*args)
        made.logging_steps = 3
        return made

    monkeypatch.setattr(run_module, "_arguments", by_threes)
    settings = SETTINGS.model_copy(update={"checkpoint_steps": 4})
    run(tmp_path / "whole", settings)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die_at(patch, 5)
        run(tmp_path / "parts", settings)
    run(tmp_path / "parts", settings)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert [step for step, loss, _ in losses(tmp_path / "parts") if loss is not None][:2] == [3, 6]


def test_signals_do_again_what_they_did_whatever_ends_the_training(run, tmp_path, monkeypatch):
    def handler(number, frame):
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, handler)
    try:
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            die_at(patch, 2, ZeroDivisionError)
            run(tmp_path / "out")
        assert signal.getsignal(signal.SIGTERM) is handler

        def twice(trainer, *args, **kwargs):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
            patch.setattr(AtomicTrainer, "training_step", twice)
            run(tmp_path / "out")
        assert stop.value.code == 143
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_a_signal_in_the_last_validation_loses_nothing(run, kept, tmp_path, monkeypatch):
    evaluate = AtomicTrainer.evaluate

    def interrupted(trainer, *args, **kwargs):
        if trainer.state.global_step == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(trainer, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="Stopped at step 8 of 8"):
        patch.setattr(AtomicTrainer, "evaluate", interrupted)
        run(tmp_path / "parts")
    assert "going on from step 8" in run(tmp_path / "parts")
    assert same(kept, tmp_path / "parts")
