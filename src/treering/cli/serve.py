"""``treering serve``."""

from __future__ import annotations

from typing import Annotated

import typer


def serve(
    model: Annotated[str, typer.Argument(metavar="DIR", help="an expert, a composition, or a hub name")],
    host: Annotated[str, typer.Option(help="address to listen on; nobody is asked for a password")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to listen on; 0 takes a free one")] = 8000,
) -> None:
    """Answer OpenAI's clients with a model: completions, and chat if its tokenizer has a chat template."""
    from treering.cli.console import progress
    from treering.serving import serve as run

    run(model, host, port, progress())
