"""``treering serve``."""

from __future__ import annotations

from typing import Annotated

import typer

from treering.cli import arguments
from treering.cli.completion import offered


def serve(
    model: Annotated[str, typer.Argument(metavar="DIR", help="an expert, a composition, or hub:NAME")],
    host: Annotated[str, typer.Option(help="address to listen on; another than this machine's own needs a key")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to listen on; 0 takes a free one")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="TREERING_API_KEY", help="what clients must know; seen by all users if given here"),
    ] = None,
    max_body: Annotated[int, typer.Option("--max-body-mb", min=1, help="largest request, in MiB")] = 4,
    timeout: Annotated[int, typer.Option(min=1, help="seconds after which an answer is broken off")] = 600,
    parallel: Annotated[int, typer.Option(min=1, help="texts that are written at once, taking turns")] = 4,
    rule: Annotated[
        str | None, typer.Option(autocompletion=offered("rule"), help="join a composition's experts by another rule")
    ] = None,
    draw: Annotated[
        bool, typer.Option("--draw", help="answer plain sampling (temperature 1, top_p 1) by one drawn expert")
    ] = False,
    speculate: arguments.Speculate = True,
    trust_remote_code: arguments.TrustRemoteCode = False,
) -> None:
    """Answer OpenAI's clients with a model: completions, and chat if its tokenizer has a chat template.

    Example: treering serve joined --port 8000 --rule evidence
    """
    from treering.cli.console import progress
    from treering.serving import serve as run
    from treering.serving.limits import MIB, Limits

    limits = Limits(body=max_body * MIB, request_seconds=timeout, parallel=parallel)
    run(model, host, port, progress(), api_key, limits, trust_remote_code, rule, draw, speculate)
