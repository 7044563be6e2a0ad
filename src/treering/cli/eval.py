"""``treering eval …``."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Measure models: every result with an interval.")


@app.callback()
def _group() -> None:
    """Keeps ``bits`` a command of its own while it is the only one."""


@app.command()
def bits(
    models: Annotated[list[str], typer.Argument(help="experts and compositions: DIR, NAME=DIR, or a hub name")],
    text: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE: every document of a file; any format data prepare reads"),
    ] = None,
    data: Annotated[list[str] | None, typer.Option(help="a prepared corpus: its held-out documents, by source")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="documents per text at most, the first ones")] = None,
    uniform: Annotated[bool, typer.Option(help="add the baseline that knows nothing")] = True,
    json: Annotated[bool, typer.Option("--json", help="rows as JSON instead of a table")] = False,
) -> None:
    """Bits per byte on held-out documents, with a 95% interval (bootstrap over documents)."""
    from pathlib import Path

    from rich import print_json

    from treering.cli.console import progress, results
    from treering.composition import load_model
    from treering.errors import TreeringError
    from treering.evaluation import Row, as_table, bits_per_byte, uniform_bits_per_byte
    from treering.tokenizer import load

    texts = _texts(text or [], data or [], limit)
    if not texts:
        raise TreeringError("Nothing to measure on: give --data DIR (held-out documents) or --text NAME=FILE.")
    console = progress()
    rows: list[Row] = []
    for entry in models:
        name, _, path = entry.rpartition("=")
        tokenizer = load(path)
        if uniform and not rows:
            rows += uniform_bits_per_byte(tokenizer, texts)
        with console.status(f"measuring {path} …"):
            rows += bits_per_byte(name or Path(path).name, load_model(path), tokenizer, texts)
    if json:
        print_json(data=rows)
    else:
        results().print(as_table(rows))


def _texts(files: list[str], corpora: list[str], limit: int | None) -> dict[str, list[str]]:
    """Documents by the text's name."""
    from itertools import islice
    from pathlib import Path

    from treering.corpus import read_documents
    from treering.evaluation import held_out_texts

    texts = {source: found[:limit] for source, found in held_out_texts(corpora).items()}
    for file in files:
        name, _, path = file.rpartition("=")
        name = name or Path(path).name.partition(".")[0]
        texts[name] = [document.text for document in islice(read_documents(path), limit)]
    return texts
