"""``treering watch`` as a person and as a script see it."""

from __future__ import annotations

import json
import os

import pytest
from typer.testing import CliRunner

from treering.cli import watch as module
from treering.cli.main import app
from treering.cli.watch import in_words
from treering.errors import TreeringError
from treering.output import locked
from treering.training.status import Finished, Seen, Status, Validation, announce

STATUS = Status(
    stage=2,
    stages=3,
    step=1_234_000,
    steps=5_678_000,
    tokens=1_234_567_890_000,
    tokens_per_second=123_456.0,
    seconds_left=4 * 3600 + 123,
    loss=6.3219,
    bits_per_byte=4.0538,
    validation=Validation(step=1_200_000, bits_per_byte=3.0164),
    best=Validation(step=1_100_000, bits_per_byte=2.9341),
    updated=1000.0,
)


def watch(*words):
    done = CliRunner().invoke(app, ["watch", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_everything_is_said_in_80_columns():
    said = in_words(Seen("fi-grown", "running", "", 12345, STATUS), now=1003.2)
    assert said.split("\n") == [
        "fi-grown: running, pid 12345",
        "  stage 2 of 3, step 1,234,000 of 5,678,000 (22%), 1,234,567,890,000 tokens",
        "  123,456 tokens/s, 4 h 02 min left of this stage",
        "  loss 6.322 nats/token (4.054 bits/byte)",
        "  validation 3.016 bits/byte at step 1,200,000, best 2.934 at step 1,100,000",
        "  said 3 s ago",
    ]
    assert max(map(len, said.split("\n"))) <= 80


def test_a_stopped_run_says_so_and_no_time_left():
    said = in_words(Seen("study", "stopped", "runs/a/b", None, STATUS), now=1000 + 3 * 86400)
    assert said.startswith("study/runs/a/b: stopped\n") and "left" not in said
    assert "said 3 d 0 h ago" in said and "the same command goes on with it" in said
    assert in_words(Seen("fi", "running", "", 1), now=0) == "fi: running, pid 1\n  it has not said yet where it stands"


def test_a_complete_run_says_what_it_reached():
    finished = Finished(steps=500, kept_step=300, tokens=512_000, seconds=240, validation_bits_per_byte=2.934)
    assert in_words(Seen("fi", "complete", finished=finished), now=0) == (
        "fi: complete\n  500 steps, 512,000 tokens in 4 min\n  validation 2.934 bits/byte (of step 300)"
    )
    assert in_words(Seen("study", "complete"), now=0) == "study: complete"


def test_it_shows_until_the_run_ends(tmp_path, monkeypatch):
    output = tmp_path / "out"
    (tmp_path / "out.unfinished").mkdir()
    lock = locked(output)
    lock.__enter__()
    announce(tmp_path / "out.unfinished", STATUS)
    once = watch(output, "--once", "--json")
    assert json.loads(once)["status"] == STATUS.model_dump()
    assert (json.loads(once)["state"], json.loads(once)["process"]) == ("running", os.getpid())

    def sleep(seconds):
        assert seconds == 0.5
        slept.append(1)
        if len(slept) == 2:
            announce(tmp_path / "out.unfinished", STATUS.model_copy(update={"step": 1_234_001}))
        if len(slept) == 3:
            lock.__exit__(None, None, None)

    slept = []
    monkeypatch.setattr(module.time, "sleep", sleep)
    said = watch(output, "--every", "0.5")
    assert [line for line in said.splitlines() if not line.startswith(" ")] == [
        f"{output}: running, pid {os.getpid()}",
        f"{output}: running, pid {os.getpid()}",
        f"{output}: stopped",
    ]
    assert said.count("step 1,234,000 of") == 1 and said.count("step 1,234,001 of") == 2
    lines = watch(output, "--json").splitlines()
    assert [json.loads(line)["state"] for line in lines] == ["stopped"]


def test_where_there_is_no_run_it_says_what_to_give(tmp_path):
    with pytest.raises(TreeringError, match="Give the directory that train, grow or study was given as output"):
        watch(tmp_path / "nowhere", "--once")


def test_it_waits_for_a_run_that_has_only_just_been_begun(tmp_path, monkeypatch):
    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 3:
            (tmp_path / "out.unfinished").mkdir()
            announce(tmp_path / "out.unfinished", STATUS)

    slept = []
    monkeypatch.setattr(module.time, "sleep", sleep)
    done = CliRunner().invoke(app, ["watch", str(tmp_path / "out")], catch_exceptions=False)
    assert len(slept) == 3
    assert done.stderr.count(f"waiting for a run at {tmp_path / 'out'}; Ctrl-C ends that") == 1
    assert done.stdout.startswith(f"{tmp_path / 'out'}: stopped")


def test_a_name_cannot_act_on_the_terminal(tmp_path):
    place = tmp_path / "study" / "runs" / "a\x1b[31m.unfinished"
    place.mkdir(parents=True)
    announce(place, STATUS)
    assert "\x1b" not in watch(tmp_path / "study") and r"a\x1b[31m: stopped" in watch(tmp_path / "study")
