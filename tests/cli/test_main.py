from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys

import pytest

from treering.cli import main as run
from treering.errors import TreeringError

_SET_UP = """
import sys, time
from treering.cli import main
from treering.output import staged_directory

def command():
    with staged_directory(sys.argv[1]) as staging:
        (staging / "file").write_text("half")
        print("begun", flush=True)
        time.sleep(60)

sys.modules["treering.cli.main"].app = command
main()
"""


def test_sigterm_is_told_and_what_is_half_made_is_taken_away(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", _SET_UP, tmp_path / "out"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Stopped by SIGTERM" in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_ctrl_c_is_told_in_a_line_whatever_goes_on(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("treering.composition.describe", interrupted)
    monkeypatch.setattr("sys.argv", ["treering", "model", "info", "some/model"])
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "Stopped by Ctrl-C. What was complete before is still there.\n"


def test_ctrl_c_before_the_commands_are_there_is_told_in_a_line():
    code = (
        "import sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'treering.cli.main': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stop())\n"
        "import treering.cli\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "Stopped by Ctrl-C.\n")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), "Not a directory (a/b)"),
        (OSError(errno.EIO, "Input/output error", "disk"), "Input/output error (disk)"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_whatever_the_system_refuses_is_one_message(monkeypatch, capsys, error, message):
    def command() -> None:
        raise error

    monkeypatch.setattr(sys.modules["treering.cli.main"], "app", command)
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_messages_and_logs_hold_no_escapes_of_strangers(monkeypatch, capsys, caplog):
    hostile = "\x1b]0;owned\x07[red]:smile:\u202e"

    def command() -> None:
        logging.getLogger("transformers").warning("\x1b[1mReport\x1b[0m on %s", hostile)
        raise TreeringError(f"first {hostile}\nsecond")

    monkeypatch.setattr(sys.modules["treering.cli.main"], "app", command)
    with pytest.raises(SystemExit):
        run()
    shown = capsys.readouterr().err
    assert "\x1b]" not in shown and "\u202e" not in shown and "[red]:smile:" in shown and "\nsecond" in shown
    (logged,) = [record.getMessage() for record in caplog.records if record.name == "transformers"]
    assert logged == r"Report on \x1b]0;owned\x07[red]:smile:\u202e"


_TALK = """
import sys
from treering.cli import main
sys.modules["treering.cli.main"].app = lambda: [print("x" * 1000) for _ in range(1000)]
main()
"""


def test_a_reader_that_has_seen_enough_is_no_error():
    talk = subprocess.Popen([sys.executable, "-c", _TALK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert talk.stdout is not None and talk.stderr is not None
    talk.stdout.readline()
    talk.stdout.close()
    assert talk.stderr.read() == ""
    assert talk.wait(timeout=30) == 141


@pytest.mark.parametrize(
    ("said", "spins"), [({}, "10000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None), ({"GOMP_SPINCOUNT": "9"}, "9")]
)
def test_waiting_threads_sleep_soon_unless_the_user_says_how_they_wait(said, spins):
    """It must be known before PyTorch is there, whose OpenMP reads it when it is loaded."""
    code = (
        "import os, sys; from treering.cli import main; assert 'torch' not in sys.modules\n"
        "sys.argv = ['treering', '--version']\n"
        "try: main()\n"
        "except SystemExit: print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    )
    others = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run([sys.executable, "-c", code], env=others | said, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{spins} False"
