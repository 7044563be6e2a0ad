"""``treering tokenizer …``."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from treering.cli import arguments

app = typer.Typer(
    no_args_is_help=True,
    help=arguments.with_example(
        "Train a Unicode tokenizer, and look inside any tokenizer.",
        "tokenizer train fi.txt et.txt --vocab-size 4096 -o tokenizer",
    ),
)

Directory = Annotated[str, typer.Argument(help="Tokenizer directory, or a name on the Hugging Face hub.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Layout(str, Enum):
    """Where tokens stand."""

    unicode = "unicode"
    compact = "compact"


class Merges(str, Enum):
    """Which n-grams there are, and which fire first."""

    bpe = "bpe"
    longest_first = "longest-first"


@app.command()
def train(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="Text, JSON (lines or an array), CSV, TSV or Parquet, compressed or not; or embedded:ru|zh|en. Each "
            "is one source (a language), and all have an equal say.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write; it must be new.")],
    vocab_size: Annotated[int, typer.Option(help="Number of tokens.")] = 65_536,
    layout: Annotated[
        Layout | None,
        typer.Option(
            help="unicode: each code point of the basic plane at its own ID. compact: the characters that "
            "occur. By default unicode from 65,536 tokens on.",
            show_default=False,
        ),
    ] = None,
    merges: Annotated[
        Merges, typer.Option(help="bpe, or the paper's longest-first (fewer characters per token).")
    ] = Merges.bpe,
    max_length: Annotated[int, typer.Option(help="Longest n-gram of bpe, in characters.")] = 16,
    text_field: Annotated[str, typer.Option(help="Field or column with the text, where files have such.")] = "text",
    document: Annotated[
        arguments.DocumentRule, typer.Option(help="What a document is in plain text, as for `data prepare`.")
    ] = arguments.DocumentRule.passage,
    validation: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of documents held out: the same that `data prepare` holds out with the same --document.",
        ),
    ] = 0.05,
    json_output: Json = False,
) -> None:
    """Train a tokenizer from which every Unicode string comes back exactly.

    Example: treering tokenizer train fi.txt et.txt hu.txt --vocab-size 4096 -o tokenizer
    """
    from treering import tokenizer as tokenizers
    from treering.cli.console import nothing_to_do
    from treering.corpus import Source, training_texts
    from treering.errors import TreeringError
    from treering.output import require_new, staged_directory
    from treering.tokenizer.layout import choose_layout

    there = tokenizers.load(f"{output}") if (output / "tokenizer.json").is_file() else None
    if there is None or len(there) != vocab_size:
        require_new(output)
    choose_layout(vocab_size, layout.value if layout else None)
    if repeated := sorted({file for file in files if files.count(file) > 1}):
        raise TreeringError(f"{', '.join(repeated)}: given more than once; name each source once.")
    trained = tokenizers.train(
        {
            file: training_texts(Source(path=file, text_field=text_field, document=document.value), validation)
            for file in files
        },
        vocab_size,
        layout=layout.value if layout else None,
        merges=merges.value,
        max_length=max_length,
    )
    if there is not None and tokenizers.identity(there) == tokenizers.identity(trained):
        nothing_to_do(output)
    else:
        with staged_directory(output) as directory:
            tokenizers.save(trained, directory)
    _print_description(tokenizers.describe(trained), json_output)


@app.command()
def info(directory: Directory, json_output: Json = False) -> None:
    """Show a tokenizer's layout, how many tokens of each kind it has, and its identity.

    Example: treering tokenizer info tokenizer --json
    """
    from treering import tokenizer as tokenizers

    _print_description(tokenizers.describe(tokenizers.load(directory)), json_output)


@app.command()
def encode(
    directory: Directory,
    text: Annotated[str, typer.Argument(help="Any text; special-token strings in it are ordinary text.")],
    json_output: Json = False,
) -> None:
    """Show the tokens of a text, and whether it comes back from them exactly.

    Example: treering tokenizer encode tokenizer "Olipa kerran"
    """
    from treering import tokenizer as tokenizers

    tokenizer = tokenizers.load(directory)
    (ids,) = tokenizers.encode(tokenizer, [text])
    tokens = tokenizer.convert_ids_to_tokens(ids)
    back = tokenizer.decode(ids)
    if json_output:
        result = {"ids": ids, "tokens": tokens, "decoded": back, "exact": back == text}
        typer.echo(json.dumps(result, ensure_ascii=False))
        return
    from rich.table import Table
    from rich.text import Text

    from treering.cli.console import results

    console = results()
    table = Table("ID", "token", box=None)
    table.columns[0].justify = "right"
    for i, token in zip(ids, tokens, strict=True):
        table.add_row(str(i), Text(repr(token)[1:-1]))
    console.print(table)
    rate = f", {len(text) / len(ids):.2f} per token" if ids else ""
    console.print(f"{len(ids):,} tokens, {len(text):,} characters{rate}", highlight=False)
    console.print("decodes exactly" if back == text else Text(f"does not decode exactly: {back!r}"))


def _print_description(description: object, json_output: bool) -> None:
    from treering.tokenizer import Description

    assert isinstance(description, Description)
    if json_output:
        typer.echo(json.dumps(asdict(description)))
        return
    from rich.table import Table

    from treering.cli.console import results

    table = Table(show_header=False, box=None)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("layout", description.layout or "not one of Treering's")
    table.add_row("tokens", f"{description.vocab_size:,}")
    table.add_row("special tokens", f"{description.special:,}")
    if description.ngrams is not None:
        by_length = ", ".join(f"{n:,} of {length}" for length, n in description.ngrams.items())
        table.add_row("bytes", f"{description.bytes:,}")
        table.add_row("characters", f"{description.characters:,}")
        table.add_row("n-grams", f"{sum(description.ngrams.values()):,}" + (f": {by_length}" * bool(by_length)))
        table.add_row("unused", f"{description.unused:,}")
    table.add_row("identity", description.identity)
    results().print(table, highlight=False)
