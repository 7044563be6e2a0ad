from __future__ import annotations

import errno
import signal
import subprocess
import sys

import pytest

from treering.cli import main as run

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
