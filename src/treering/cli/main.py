"""The ``treering`` command and what it does with errors."""

from __future__ import annotations

import errno
import sys

import typer
from rich.console import Console
from safetensors import SafetensorError

from treering.cli import compose, data, demo, eval, explain, grow, model, serve, study, substrate, tokenizer, train
from treering.errors import Interrupted, TreeringError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Grow and join language models on a frozen core.",
)
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(substrate.app, name="substrate")
app.add_typer(data.app, name="data")
app.add_typer(model.app, name="model")
app.command()(demo.demo)
app.command()(train.train)
app.command()(grow.grow)
app.add_typer(compose.app, name="compose")
app.command()(compose.generate)
app.command()(explain.explain)
app.command()(serve.serve)
app.add_typer(eval.app, name="eval")
app.add_typer(study.app, name="study")


def main() -> None:
    """Run the command line; every error a person can mend is one message and exit code 2."""
    try:
        app()
    except TreeringError as error:
        _fail(str(error))
    except Interrupted as stop:
        Console(stderr=True, soft_wrap=True).print(str(stop), markup=False, highlight=False)
        sys.exit(130)
    except SafetensorError as error:
        _fail(f"A safetensors file is damaged or cut short: {error}\nCopy or download it again.")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOENT):
            raise
        where = f" ({error.filename})" if error.filename else ""
        _fail(f"{error.strerror}{where}. What was complete before is still there.")


def _fail(message: str) -> None:
    Console(stderr=True, soft_wrap=True).print("error:", message, style="bold red", markup=False, highlight=False)
    sys.exit(2)
