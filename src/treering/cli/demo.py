"""``treering demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="directory for all; runs/demo or runs/demo-pretrained"),
    ] = None,
    pretrained: Annotated[
        str | None, typer.Option(metavar="MODEL", help="branches on this model instead: DIR, hub:NAME or FILE.gguf")
    ] = None,
    pages: Annotated[
        int | None, typer.Option(min=20, help="with --pretrained: help pages of each language, a tenth held out")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="a small one that only shows that all works")] = False,
    json: Annotated[bool, typer.Option("--json", help="the results as JSON instead of a table")] = False,
) -> None:
    """Two specialists on one frozen substrate, joined after training and measured; run again to go on.

    With --pretrained: a Russian and a Chinese branch on a model that exists, joined with it.

    Example: treering demo --quick -o runs/quick
    """
    import time

    from rich import print_json

    from treering.cli.console import print_table, progress, results
    from treering.demo import demo as of_specialists
    from treering.demo import demo_pretrained
    from treering.errors import TreeringError
    from treering.evaluation import as_table

    if pages and not pretrained:
        raise TreeringError("--pages is of the demo on a pretrained model: give --pretrained MODEL with it.")
    begun, console = time.perf_counter(), progress()
    if pretrained:
        place = output or Path("runs/demo-pretrained")
        result = demo_pretrained(pretrained, place, quick, console, pages)
    else:
        place = output or Path("runs/demo")
        result = of_specialists(place, quick, console)
    if json:
        print_json(data=result.rows)
    else:
        out = results()
        print_table(out, as_table(result.rows))
        for sentence in result.findings:
            out.print(sentence, highlight=False, soft_wrap=True)
    console.print(f"{time.perf_counter() - begun:,.0f} s; look at {place / 'report.html'}")
