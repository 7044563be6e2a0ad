"""Chat templates, rendered in a process of their own: each is a program that came with the model.

transformers' sandbox keeps a template from files and from Python's insides, but not from endless loops or from a string
of ten gigabytes. Run as a module, this file is that process: it reads JSON lines and answers each with one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

SECONDS = 5.0
"""How long one conversation may take."""

MEMORY = 2**30
"""Bytes that the process may use, of which it needs about a tenth itself."""


class TemplateError(Exception):
    """A template refuses a conversation, or is not done with it in time."""


class Renderer:
    """A process that lays out conversations by one template; started when first asked, and again when it had to die.

    Not safe to be used from several threads at once.

    Args:
        names: what the template may ask for beside the messages, such as special tokens.
        longest: characters after which a text is cut off, since it is too long to be read anyway.
        seconds: how long one conversation may take.
    """

    def __init__(self, template: str, names: dict[str, Any], longest: int, seconds: float = SECONDS) -> None:
        self._setting = {"template": template, "names": names, "longest": longest, "seconds": seconds}
        self._seconds = seconds
        self._process: subprocess.Popen[str] | None = None

    def render(self, messages: list[dict[str, Any]]) -> str:
        """The messages as one text that ends where an answer begins.

        Raises:
            TemplateError: the template raises an error, or takes too much time or memory.
        """
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = self._start()
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(messages) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line.endswith("\n"):
            self.close()
            raise TemplateError(f"it takes more than {self._seconds:g} seconds or {MEMORY / 2**30:g} GiB of memory")
        answer = json.loads(line)
        if "error" in answer:
            raise TemplateError(answer["error"])
        return str(answer["text"])

    def _start(self) -> subprocess.Popen[str]:
        # Only from where this process imports: its own directory first, not whatever directory it was started in.
        home = str(Path(__file__).parents[2])
        process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=home,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join([home, *filter(None, sys.path)]), "OPENBLAS_NUM_THREADS": "1"},
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the server
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(self._setting) + "\n")
        return process

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(BrokenPipeError):
                self._process.communicate()
            self._process = None


def main() -> None:
    """Render until there is nothing to read any more; when a conversation takes too long, an alarm ends the process."""
    import resource

    from transformers.utils.chat_template_utils import render_jinja_template

    with contextlib.suppress(ValueError, OSError):  # macOS does not let a process limit this
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    setting = json.loads(sys.stdin.readline())
    template, names, longest = setting["template"], setting["names"], setting["longest"]
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, setting["seconds"])
        try:
            rendered: Any = render_jinja_template(
                [json.loads(line)], chat_template=template, add_generation_prompt=True, **names
            )
            text = rendered[0][0]
            text.encode()  # Unicode, whatever the template made up
            answer = {"text": text[: longest + 1]}
        except Exception as error:  # each template refuses conversations in its own way
            answer = {"error": f"{error or type(error).__name__}"[:1000]}
        print(json.dumps(answer), flush=True)
        signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    main()
