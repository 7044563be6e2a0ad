"""What is seen of a run from another process, and that looking and being looked at disturb nothing."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from rich.console import Console

from treering.errors import Interrupted, TreeringError
from treering.growth import Plan, Stage, grow, seedling
from treering.output import locked, writer_of
from treering.training import Backbone, announcing
from treering.training.checkpoints import AtomicTrainer
from treering.training.status import MOST_BYTES, Status, Validation, announce, look


@pytest.fixture(autouse=True)
def at_each_step(monkeypatch):
    monkeypatch.setattr(announcing, "SECONDS", 0.0)


def act_at(patch, step, act):
    """Do something as a step begins, counted from 0."""

    def acting(trainer, *args, **kwargs):
        if trainer.state.global_step == step:
            act()
        return AtomicTrainer.__base__.training_step(trainer, *args, **kwargs)

    patch.setattr(AtomicTrainer, "training_step", acting)


def die():
    raise KeyboardInterrupt


STATUS = Status(step=3, steps=8, tokens=768, tokens_per_second=10.0, seconds_left=128.0, updated=1.0)


def test_a_run_is_seen_while_it_goes_on_when_it_stopped_and_when_it_is_complete(
    run, model, settings, tmp_path, monkeypatch
):
    seen = []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        act_at(patch, 5, lambda: (seen.append(look(tmp_path / "out")), die()))
        run(model, tmp_path / "out", settings)
    (going,) = set(seen)
    assert (going.state, going.process, going.run) == ("running", os.getpid(), "")
    status = going.status
    assert (status.step, status.steps, status.tokens, status.stage) == (5, 8, 1280, None)
    assert status.validation.step == status.best.step == 4 and 0 < status.validation.bits_per_byte < 20
    assert status.tokens_per_second > 0 and status.loss > status.bits_per_byte > 0
    assert abs(status.updated - time.time()) < 60
    assert status.seconds_left == pytest.approx(768 / status.tokens_per_second)
    assert (tmp_path / "out.unfinished" / "status.json").stat().st_size < MOST_BYTES / 8

    stopped = look(tmp_path / "out")
    assert (stopped.state, stopped.process, stopped.status) == ("stopped", None, status)

    result = run(model, tmp_path / "out", settings)
    done = look(tmp_path / "out")
    assert (done.state, done.status) == ("complete", None)
    assert (done.finished.steps, done.finished.kept_step) == (8, result.kept_step)
    assert done.finished.validation_bits_per_byte == result.validation_bits_per_byte
    with pytest.raises(TreeringError, match=r"There is no run at .*nothing"):
        look(tmp_path / "nothing")
    with pytest.raises(TreeringError, match="There is no run at"):
        look("/")


def test_a_run_that_is_stopped_says_the_step_it_stopped_at(run, model, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(announcing, "SECONDS", 3600.0)
    signals = [signal.SIGINT]  # one alone: a step is several micro-batches
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="Stopped at step 6 of 8"):
        act_at(patch, 5, lambda: signals and signal.raise_signal(signals.pop()))
        run(model, tmp_path / "out", settings)
    assert look(tmp_path / "out").status.step == 6


def test_of_a_growth_the_stage_is_told(substrate, tokenizer, corpus, settings, tmp_path, monkeypatch):
    torch.manual_seed(0)
    plan = Plan(stages=(Stage(new="1", start="random", share=0.5), Stage(new="2", share=0.5)))
    model, quiet = seedling(substrate, tokenizer, Backbone(preset="tiny")), Console(file=io.StringIO())
    seen = []
    with monkeypatch.context() as patch:
        act_at(patch, 3, lambda: seen.append(look(tmp_path / "out").status))
        grow(model, tokenizer, corpus, tmp_path / "out", plan, settings, console=quiet)
    first, second = dict.fromkeys((s.stage, s.stages, s.step, s.steps) for s in seen)
    assert (first, second) == ((1, 2, 3, 4), (2, 2, 3, 4))
    assert look(tmp_path / "out").finished.steps == 8


def test_of_a_study_the_run_that_was_heard_of_last_is_told(tmp_path):
    for name, when in (("a/one", 1.0), ("b/two", 3.0), ("c/three", 2.0)):
        place = tmp_path / "study" / "runs" / f"{name}.unfinished"
        place.mkdir(parents=True)
        announce(place, STATUS.model_copy(update={"updated": when}))
    with locked(tmp_path / "study"):
        seen = look(tmp_path / "study")
    assert (seen.state, seen.run, seen.status.updated) == ("running", "runs/b/two", 3.0)
    assert look(tmp_path / "study").state == "stopped"
    for name in ("a/one", "b/two", "c/three"):
        (tmp_path / "study" / "runs" / f"{name}.unfinished" / "status.json").unlink()
        (tmp_path / "study" / "runs" / f"{name}.unfinished").rmdir()
    assert look(tmp_path / "study").state == "stopped"
    (tmp_path / "study" / "study.json").write_text("[]")
    assert look(tmp_path / "study").state == "complete"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff" * 10,
        b'{"step": ' + b"9" * 5000 + b"}",
        b" " * (MOST_BYTES + 1) + b"{}",
        STATUS.model_dump_json().replace('"step":3', '"step":-1').encode(),
        STATUS.model_dump_json().replace("10.0", "1e999").encode(),
        STATUS.model_dump_json().replace('"step":3', '"step":3,"more":1').encode(),
    ],
    ids=lambda content: repr(content[:20]),
)
def test_a_status_that_is_none_is_not_believed(tmp_path, content):
    place = tmp_path / "out.unfinished"
    place.mkdir()
    (place / "status.json").write_bytes(content)
    seen = look(tmp_path / "out")
    assert (seen.state, seen.status) == ("stopped", None)


def test_a_link_is_not_followed(tmp_path):
    place = tmp_path / "out.unfinished"
    place.mkdir()
    (tmp_path / "elsewhere").write_text(STATUS.model_dump_json())
    (place / "status.json").symlink_to(tmp_path / "elsewhere")
    assert look(tmp_path / "out").status is None
    announce(place, STATUS)
    assert look(tmp_path / "out").status == STATUS
    assert not (place / "status.json").is_symlink() and (tmp_path / "elsewhere").exists()


def test_what_cannot_be_written_disturbs_nobody(tmp_path):
    announce(tmp_path / "missing", STATUS)
    assert not list(tmp_path.iterdir())


def test_a_status_fits_its_bound():
    largest = 10**18
    told = Validation(step=largest, bits_per_byte=1e18)
    whole = {name: largest for name in Status.model_fields if name not in ("validation", "best")}
    assert len(Status(**whole, validation=told, best=told).model_dump_json()) < MOST_BYTES


HOLDER = """
import sys, time
from treering.output import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_writer_is_known_without_a_lock(tmp_path):
    assert writer_of(tmp_path / "out") is None
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "out"], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        assert writer_of(tmp_path / "out") == holder.pid
    finally:
        holder.kill()
        holder.wait()
    lock = tmp_path / ".out.lock"
    assert int(lock.read_text()) == holder.pid and writer_of(tmp_path / "out") is None
    lock.write_text(f"{os.getpid()}\n")
    assert writer_of(tmp_path / "out") == os.getpid()
    os.utime(lock, (1e9, 1e9))  # this process began long after that
    assert writer_of(tmp_path / "out") is None
    for content in ("", "me\n", "-1\n", "9" * 30, "0\n"):
        lock.write_text(content)
        assert writer_of(tmp_path / "out") is None
    with locked(tmp_path / "out"):
        assert writer_of(tmp_path / "out") == os.getpid()


def test_looking_leaves_everything_as_it_was(tmp_path):
    place = tmp_path / "out.unfinished"
    place.mkdir()
    announce(place, STATUS)
    before = {path: path.stat() for path in tmp_path.rglob("*")}
    look(tmp_path / "out")
    after = {path: path.stat() for path in tmp_path.rglob("*")}
    assert after.keys() == before.keys()
    assert all(after[path].st_mtime_ns == before[path].st_mtime_ns for path in before)
    assert json.loads((place / "status.json").read_text())["step"] == 3
