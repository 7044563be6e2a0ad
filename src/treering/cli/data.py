"""``treering data …``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from treering.cli import arguments
from treering.errors import TreeringError

if TYPE_CHECKING:
    from rich.table import Table

    from treering.corpus import CorpusRecipe, Manifest

FEW = 10
"""Held-out documents of a source from which on an interval over them says something."""

app = typer.Typer(
    no_args_is_help=True,
    help=arguments.with_example(
        "Make corpora: packed training blocks and held-out documents.",
        "data prepare fi.txt --tokenizer tokenizer -o data-fi",
    ),
)


class Format(str, Enum):
    """What is inside a file."""

    text = "text"
    jsonl = "jsonl"
    json = "json"
    csv = "csv"
    tsv = "tsv"
    parquet = "parquet"


class MixRule(str, Enum):
    """How weights are reached."""

    subsample = "subsample"
    repeat = "repeat"


@app.command()
def prepare(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]SOURCE...",
            help="file, directory, 'glob', URL, embedded:ru|zh|en, or hub:owner/name; a name if you like",
            show_default=False,
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", "-t", help="directory, hub:NAME or FILE.gguf of the tokenizer or its model"),
    ] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="directory to make")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="YAML with sources, tokenizer, output …, instead of SOURCE")
    ] = None,
    block_size: Annotated[int | None, typer.Option(help="tokens in a training block (default 512)", min=2)] = None,
    validation: Annotated[float | None, typer.Option(help="share of the documents to hold out (default 0.05)")] = None,
    calibration: Annotated[
        float | None, typer.Option(help="share to hold out besides, for fitting compositions (default 0)")
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SHARE", help="share of the training tokens; for all or none"),
    ] = None,
    mix: Annotated[
        MixRule | None,
        typer.Option(help="reach weights by leaving out or by repeating (default subsample)"),
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=1/2", help="only the documents in the first of two parts"),
    ] = None,
    document: Annotated[
        arguments.DocumentRule | None, typer.Option(help="what a document is in plain text (default passage)")
    ] = None,
    file_format: Annotated[Format | None, typer.Option("--format", help="where the extension does not say it")] = None,
    text_field: Annotated[str | None, typer.Option(help="field with the text (default text)")] = None,
    id_field: Annotated[str | None, typer.Option(help="field with the document's id (default id)")] = None,
    limit: Annotated[int | None, typer.Option(help="read so many documents of each source", min=1)] = None,
    max_document_mb: Annotated[float | None, typer.Option(help="longest document, in MiB (default 64)")] = None,
    seed: Annotated[int | None, typer.Option(help="of the documents' order (default 0)", min=0)] = None,
    duplicate_bytes: Annotated[
        int | None,
        typer.Option(help="shortest paragraph cut out of training if held out; 0 cuts none (default 16)", min=0),
    ] = None,
    set_: arguments.SetOfCorpus = None,
    json: Annotated[bool, typer.Option("--json", help="print the manifest as JSON")] = False,
) -> None:
    """Cut text into packed token blocks to train on, and hold whole documents out to measure on.

    Example: treering data prepare fi=kalevala.txt 'et=texts/*.txt' hu.jsonl.gz -t tokenizer -o corpus
    """
    from treering import corpus
    from treering.cli.console import caution, nothing_to_do, progress
    from treering.recipe import check_recipe, load_recipe

    whole = {
        "tokenizer": tokenizer,
        "output": output,
        "block_size": block_size,
        "validation": validation,
        "calibration": calibration,
        "mix": mix and mix.value,
        "seed": seed,
        "duplicate_bytes": duplicate_bytes,
    }
    each = {
        "document": document and document.value,
        "format": file_format and file_format.value,
        "text_field": text_field,
        "id_field": id_field,
        "limit": limit,
        "max_document_bytes": int(max_document_mb * 2**20) if max_document_mb else None,
    }
    if recipe:
        if sources or weight or part or any(value is not None for value in each.values()):
            raise TreeringError(
                "With --recipe, the sources and all that belongs to one (weight, part, format …) stand in it."
            )
        chosen: CorpusRecipe = load_recipe(recipe, corpus.CorpusRecipe, whole, set_ or ())
    else:
        for option, value in (("SOURCE", sources), ("--tokenizer", tokenizer), ("--output", output)):
            if not value:
                raise TreeringError(f"{option} is missing; see treering data prepare --help.")
        values: dict[str, Any] = {k: v for k, v in whole.items() if v is not None}
        values["sources"] = _sources(sources or [], each, weight or [], part or [])
        chosen = check_recipe(values, corpus.CorpusRecipe, "command line", set_ or ())
    from treering.output import require_new
    from treering.tokenizer import load

    console, loaded = progress(), load(chosen.tokenizer)
    if corpus.is_prepared(chosen, loaded):
        nothing_to_do(chosen.output)
        _show(corpus.load_manifest(chosen.output), json)
        return
    require_new(chosen.output)
    made = corpus.prepare(
        chosen.sources,
        loaded,
        chosen.output,
        block_size=chosen.block_size,
        validation=chosen.validation,
        calibration=chosen.calibration,
        mix=chosen.mix,
        seed=chosen.seed,
        duplicate_bytes=chosen.duplicate_bytes,
        console=console,
    )
    _show(made.manifest, json)
    if told := _too_small(made.manifest):
        caution(told)


def _too_small(manifest: Manifest) -> str | None:
    """What to say where so little is held out of a source that measuring on it tells nothing."""
    few = {s.name: s.validation_documents for s in manifest.sources if s.validation_documents < FEW}
    if not manifest.validation_share or not few:
        return None
    told = ", ".join(f"{name} {count}" for name, count in few.items())
    return (
        f"few documents are held out ({told}), and an interval over fewer than {FEW} tells nothing. Give more text, "
        "smaller documents (--document paragraph or line), or a larger --validation."
    )


@app.command()
def info(
    directory: Annotated[Path, typer.Argument(help="a prepared corpus")],
    json: Annotated[bool, typer.Option("--json", help="the manifest as it stands")] = False,
) -> None:
    """Show what a prepared corpus holds, and from where.

    Example: treering data info corpus --json
    """
    from treering.corpus import Corpus

    _show(Corpus.load(directory).manifest, json)


def _sources(
    specifications: Sequence[str], each: dict[str, Any], weights: Sequence[str], parts: Sequence[str]
) -> list[dict[str, Any]]:
    """Sources from the command line's words; weights and parts find theirs by name."""
    from treering.corpus import Source
    from treering.recipe import check_recipe

    common = {name: value for name, value in each.items() if value is not None}
    values: dict[str, dict[str, Any]] = {}
    for specification in specifications:
        name, separator, path = specification.partition("=")
        if not separator or Path(specification).exists() or not re.fullmatch(r"[\w.-]+", name):
            name, path = "", specification
        source = {"path": path, "name": name} | common
        name = check_recipe(source, Source, specification).name
        if name in values:
            raise TreeringError(f"Two sources are named {name}. Give each a name of its own: NAME=PATH.")
        values[name] = source | {"name": name}
    for option, field, assignments in (("--weight", "weight", weights), ("--part", "part", parts)):
        for assignment in assignments:
            name, separator, value = assignment.partition("=")
            if not separator or name not in values:
                raise TreeringError(
                    f"{option} {assignment}: write NAME={'0.5' if field == 'weight' else '1/2'}; "
                    f"the sources are named {', '.join(values)}."
                )
            values[name][field] = value
    return list(values.values())


def _show(manifest: Manifest, json: bool) -> None:
    from treering.cli.console import results

    if json:
        print(manifest.model_dump_json(indent=2))
        return
    console = results()
    console.print(_table(manifest))
    train = manifest.train
    held_out = {"validation": manifest.validation}
    if manifest.calibration_share:
        held_out["calibration"] = manifest.calibration
    console.print(
        f"train: {train.blocks:,} blocks of {manifest.block_size} = {train.tokens:,} tokens "
        f"({train.dropped_tokens} dropped at the end)",
        *(
            f"{name}: {record.documents:,} documents = {record.tokens:,} tokens, {record.text_bytes:,} bytes"
            for name, record in held_out.items()
        ),
        *_duplicates(manifest),
        f"tokenizer: {manifest.tokenizer.identity[:16]}… with {manifest.tokenizer.vocab_size:,} tokens",
        sep="\n",
        highlight=False,
    )


def _duplicates(manifest: Manifest) -> Iterator[str]:
    """What of the held-out text stood, and stands, in training documents too."""
    overlap, sources = manifest.overlap, manifest.sources
    if overlap is None:
        yield "near-duplicates: not looked for (prepared by an earlier version); prepare it again to cut them"
        return
    cut_bytes = sum(source.cut_bytes for source in sources)
    lost = _lost(
        sum(source.cut_paragraphs for source in sources),
        sum(source.repeats_of_held_out for source in sources),
        cut_bytes,
        cut_bytes + sum(source.train_bytes for source in sources),
        "training",
    )
    before, after = (
        f"{found / max(overlap.paragraph_bytes, 1):.1%} of the validation bytes"
        for found in (overlap.before, overlap.after)
    )
    if not manifest.duplicate_bytes:
        yield f"near-duplicates: {before} stand in training documents too, and were kept (--duplicate-bytes 0)"
    elif overlap.paragraph_bytes or cut_bytes:
        yield (
            f"near-duplicates: {before} stood in training documents too; {lost}; {after}, phrases of less than "
            f"{manifest.duplicate_bytes} bytes, still do"
        )
    calibration_bytes = sum(source.calibration_cut_bytes for source in sources)
    if calibration_bytes:
        lost = _lost(
            sum(source.calibration_cut_paragraphs for source in sources),
            sum(source.calibration_repeats for source in sources),
            calibration_bytes,
            calibration_bytes + manifest.calibration.text_bytes,
            "calibration",
        )
        yield f"near-duplicates in calibration: {lost}"


def _lost(paragraphs: int, documents: int, cut_bytes: int, of_bytes: int, side: str) -> str:
    were = "paragraph was" if paragraphs == 1 else "paragraphs were"
    whole = "document" if documents == 1 else "documents"
    share = f"{cut_bytes / of_bytes:.1%} of the {side} bytes"
    return f"{paragraphs:,} {were} cut and {documents:,} {whole} left out ({share})"


def _table(manifest: Manifest) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from treering.reading import printable

    table = Table(box=box.SIMPLE, collapse_padding=True, pad_edge=False)
    table.add_column("source")
    for header in ("documents", "MB", "bytes/token", "held out", "train tokens", "passes", "share"):
        table.add_column(header, justify="right", no_wrap=True)
    for source in manifest.sources:
        calibration = f" + {source.calibration_documents:,}" if manifest.calibration_share else ""
        table.add_row(
            Text(printable(f"{source.name} {source.source.part}" if source.source.part else source.name)),
            f"{source.documents:,}",
            f"{source.text_bytes / 1e6:,.2f}",
            f"{source.bytes_per_token:.2f}",
            f"{source.validation_documents:,}{calibration}",
            f"{source.used_tokens:,}",
            f"{source.passes:.2f}",
            f"{source.share:.1%}",
        )
    return table
