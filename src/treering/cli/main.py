"""The ``treering`` command and what it does with errors."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from safetensors import SafetensorError
from typer.core import TyperGroup

from treering import __version__
from treering.cli import (
    compare,
    compose,
    data,
    demo,
    eval,
    explain,
    grow,
    importing,
    init,
    model,
    publish,
    report,
    serve,
    study,
    substrate,
    tokenizer,
    train,
    watch,
)
from treering.cli.console import talk
from treering.errors import Interrupted, TreeringError
from treering.reading import printable

SPINS = "10000"
"""Looks at a barrier before a thread sleeps: in a run of its own no slower than the library's default of many more."""

STOPPED = "Stopped by {}. What was complete before is still there."

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Commands(TyperGroup):
    """All commands; of Ctrl-C in one of them is said what SIGTERM is told by, where typer would say nothing."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted(STOPPED.format("Ctrl-C")) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        print(f"treering {__version__}")
        raise typer.Exit


@app.callback()
def treering(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress on standard error; results, warnings and errors come.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also what libraries log.")] = False,
) -> None:
    """Grow and join language models on a frozen core.

    Example: treering -q train recipes/expert.yaml --substrate substrate --data data-fi -o fi
    """
    talk(quiet, verbose)


app.command()(init.init)
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(substrate.app, name="substrate")
app.add_typer(data.app, name="data")
app.add_typer(model.app, name="model")
app.command()(demo.demo)
app.command()(train.train)
app.command()(grow.grow)
app.command()(watch.watch)
app.add_typer(compose.app, name="compose")
app.command()(compose.generate)
app.command("import")(importing.import_)
app.command()(explain.explain)
app.command()(serve.serve)
app.add_typer(eval.app, name="eval")
app.command()(compare.compare)
app.command()(publish.card)
app.command()(publish.publish)
app.command(
    "lm-eval", add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)(eval.lm_eval)
app.add_typer(study.app, name="study")
app.command()(report.report)


def main() -> None:
    """Run the command line; every error a person can mend is one message and exit code 2."""
    with contextlib.suppress(ValueError):  # not the main thread: whoever runs it there stops it in another way
        signal.signal(signal.SIGTERM, _terminate)
    logging.setLogRecordFactory(_log_record)
    _let_waiting_threads_sleep_soon()
    try:
        app()
    except TreeringError as error:
        _fail(str(error))
    except Interrupted as stop:
        _say(str(stop))
        sys.exit(130)
    except SafetensorError as error:
        _fail(f"A safetensors file is damaged or cut short: {error}\nCopy or download it again.")
    except BrokenPipeError:
        # Whoever read our output has seen enough; nothing more can be said there, not even when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except MemoryError:
        _fail("There is not enough memory for this. What was complete before is still there.")
    except OSError as error:
        if error.strerror is None:
            raise
        where = f" ({error.filename})" if error.filename else ""
        _fail(f"{error.strerror}{where}. What was complete before is still there.")


def _let_waiting_threads_sleep_soon() -> None:
    """Have OpenMP's threads spin only a while before they wait asleep, unless the environment says how they wait.

    Where others use the cores too, one that spins at a barrier keeps away the very thread that it waits for
    (docs/training.md). GNU's OpenMP, which PyTorch has on Linux, reads this when PyTorch is imported, which is later.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def _terminate(number: int, frame: FrameType | None) -> None:
    """End as an exception does, so that what is half made is taken away; a training run has a better handler."""
    _say(STOPPED.format("SIGTERM"))
    sys.exit(128 + number)


def _say(message: str) -> None:
    Console(stderr=True, soft_wrap=True).print(Text(_printable(message)))


def _fail(message: str) -> None:
    Console(stderr=True, soft_wrap=True).print(Text(f"error: {_printable(message)}", style="bold red"))
    sys.exit(2)


def _printable(message: str) -> str:
    """A message as a terminal may show it, whatever strings of a stranger's files it quotes."""
    return "\n".join(printable(line, 4000) for line in message.split("\n")[:200])


def _log_record(*arguments: Any, **options: Any) -> logging.LogRecord:
    """What a library logs, which may quote a stranger's files too."""
    record = logging.LogRecord(*arguments, **options)
    record.msg, record.args = _printable(_COLOURS.sub("", record.getMessage())), ()
    return record
