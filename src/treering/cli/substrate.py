"""``treering substrate …``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from treering.cli import arguments

app = typer.Typer(
    no_args_is_help=True,
    help=arguments.with_example(
        "Build, inspect and verify a frozen token interface.",
        "substrate build tokenizer --d-model 192 -o substrate",
    ),
)


class Kind(str, Enum):
    """What the rows are made of."""

    glyph = "glyph"
    code = "code"
    random = "random"
    trainable = "trainable"


class Projection(str, Enum):
    """How a glyph cell becomes d_model numbers."""

    pca = "pca"
    hadamard = "hadamard"
    pixels = "pixels"


class Collisions(str, Enum):
    """What to do with tokens that draw alike."""

    mark = "mark"
    keep = "keep"


LABELS = {
    "look_alike_groups": "groups of look-alike tokens",
    "look_alike_tokens": "tokens in these groups",
    "blank_tokens": "blank tokens",
    "tokens_with_missing_characters": "tokens with characters the font lacks",
    "marked_tokens": "tokens told apart by a mark",
    "rows_of_code_alone": "rows without a picture (code alone)",
    "identical_rows": "rows equal to another",
    "nearest_rows": "distance of the two nearest rows",
    "rank": "rank",
    "variance_kept": "share of the variance kept",
    "reproducible": "alike on every machine",
    "uncertain_components": "components of uncertain direction",
    "uncertain_entries": "entries of uncertain rounding",
}
UNCERTAIN = (
    "not all principal components of this vocabulary are certain ({components} of uncertain "
    "direction, {entries} entries of uncertain rounding): another machine may get another fingerprint. "
    "Share the files, or use --projection hadamard or pixels, which are alike everywhere."
)


@app.command()
def build(
    tokenizer: Annotated[
        str, typer.Argument(help="Directory with a tokenizer.json, or a name on the Hugging Face hub.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="New directory for the substrate.")],
    d_model: Annotated[int, typer.Option(min=1, help="Width of the rows, the hidden size of the models.")],
    kind: Annotated[
        Kind,
        typer.Option(help="Pictures of the tokens, binary code of the ID, frozen random rows, or rows to be trained."),
    ] = Kind.glyph,
    projection: Annotated[
        Projection,
        typer.Option(help="From pictures to rows: the paper's PCA, a fixed integer transform, or the pixels."),
    ] = Projection.pca,
    collisions: Annotated[
        Collisions,
        typer.Option(help="Tokens that draw alike: mark all but the first, or keep them equal as the paper does."),
    ] = Collisions.mark,
    cell: Annotated[
        int | None, typer.Option(min=1, help="Pixels on a side of a glyph cell; by default from d_model.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of random and trainable rows.")] = 0,
) -> None:
    """Make the substrate of a tokenizer: one row per token, and the fingerprint that names it.

    Example: treering substrate build tokenizer --d-model 192 --projection hadamard -o substrate
    """
    from treering import substrate
    from treering import tokenizer as tokenizers
    from treering.cli.console import caution, nothing_to_do, progress
    from treering.output import require_new, staged_directory

    there = substrate.load(output) if Path(output, "substrate.json").is_file() else None
    if there is None:
        require_new(output)
    console = progress()
    loaded = tokenizers.load(tokenizer)
    with console.status("Building the substrate …"):
        made = substrate.build(
            loaded,
            d_model,
            kind.value,
            projection=projection.value,
            collisions=collisions.value,
            cell=cell,
            seed=seed,
        )
    if there is not None and there.fingerprint == made.fingerprint:
        nothing_to_do(output)
    else:
        with staged_directory(output) as staging:
            made.save(staging, loaded)
    _show(made, output)
    if not made.report["reproducible"]:
        components, entries = made.report["uncertain_components"], made.report["uncertain_entries"]
        caution(UNCERTAIN.format(components=components, entries=entries))


@app.command()
def info(
    directory: Annotated[Path, typer.Argument(help="Directory of a substrate.")],
    sheet: Annotated[
        Path | None, typer.Option(help="Also draw the glyph sheet into this new .png, .svg or .pdf file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say what a substrate is and what was met when it was made; checks its bytes.

    Example: treering substrate info substrate --sheet glyphs.png
    """
    from treering import substrate
    from treering import tokenizer as tokenizers
    from treering.errors import TreeringError

    if sheet is not None and sheet.exists():
        raise TreeringError(f"{sheet} already exists; choose another file, or remove it first.")
    if sheet is not None and sheet.suffix not in (".png", ".svg", ".pdf"):
        raise TreeringError(f"A sheet is a .png, .svg or .pdf file, not {sheet.name}.")
    loaded = substrate.load(directory)
    if sheet is not None:
        tokenizer = tokenizers.load(directory)
        substrate.require_same(loaded, tokenizer)
        figure = substrate.draw_sheet(tokenizer, loaded)
        sheet.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(sheet, dpi=160)
    if as_json:
        _print_json(
            {
                "fingerprint": loaded.fingerprint,
                "frozen": loaded.frozen,
                "recipe": loaded.recipe.to_dict(),
                "report": loaded.report,
            }
        )
    else:
        _show(loaded, directory)


@app.command()
def verify(
    directory: Annotated[Path, typer.Argument(help="Directory of a substrate.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a sentence.")] = False,
) -> None:
    """Make a substrate again from its tokenizer and recipe and compare; exit code 2 if anything differs.

    Example: treering substrate verify substrate
    """
    from treering import substrate
    from treering.cli.console import progress
    from treering.errors import TreeringError

    with progress().status("Building the substrate again …"):
        found = substrate.verify(directory)
    if as_json:
        _print_json(
            {
                "ok": found.ok,
                "fingerprint": found.fingerprint,
                "rebuilt": found.rebuilt,
                "differences": found.differences,
            }
        )
    if not found.ok:
        raise TreeringError(
            f"{directory} is not what its recipe and tokenizer give:\n- " + "\n- ".join(found.differences) + "\n"
            "Build it again with `treering substrate build`, or get it anew from where it came from."
        )
    if not as_json:
        typer.echo(f"{directory} is what its recipe says: rebuilding gives the same {found.fingerprint}")


@app.command()
def neighbours(
    directory: Annotated[Path, typer.Argument(help="Directory of a substrate.")],
    tokens: Annotated[list[str], typer.Argument(metavar="TOKEN...", help="Texts that are tokens, or their spelling.")],
    count: Annotated[int, typer.Option(min=1, max=1000, help="Neighbours of each.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show the rows nearest to a token's: those that are drawn alike, or whose codes are.

    Example: treering substrate neighbours substrate а б --count 5
    """
    from rich.table import Table

    from treering import substrate
    from treering.cli.console import plain, print_readable, print_table, results
    from treering.substrate.glyphs import token_texts

    loaded, tokenizer = _with_tokenizer(directory)
    chosen, texts = substrate.find_tokens(tokenizer, tokens), token_texts(tokenizer)
    found = substrate.neighbours(loaded.matrix, chosen, count)
    if as_json:
        print_readable(
            [
                {
                    "token": token,
                    "text": texts[token],
                    "neighbours": [
                        {"token": near.token, "text": texts[near.token], "cosine": round(near.cosine, 6)}
                        for near in own
                    ],
                }
                for token, own in zip(chosen, found, strict=True)
            ]
        )
        return
    table = Table("of", "nearest", box=None)
    for column in ("token", "cosine"):
        table.add_column(column, justify="right")
    table.add_column("characters")
    for token, own in zip(chosen, found, strict=True):
        for near in own:
            text = texts[near.token]
            shown = plain(texts[token]), plain(text), f"{near.token:,}", f"{near.cosine:.3f}"
            table.add_row(*shown, plain(_characters(text)))
    print_table(results(), table)


@app.command("map")
def map_(
    directory: Annotated[Path, typer.Argument(help="Directory of a substrate.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page, as map.html.")],
    rows: Annotated[int, typer.Option(min=10, max=20_000, help="Rows at most; of more, so many are drawn.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the drawing, and of t-SNE.")] = 0,
) -> None:
    """Draw the rows on a plane by t-SNE, marked by script, and say whether rows lie near those of their own script.

    Example: treering substrate map substrate -o map.html
    """
    from treering import substrate
    from treering.cli.console import plain, progress
    from treering.report import as_html, write_page
    from treering.report.substrates import map_report
    from treering.substrate.glyphs import token_texts

    page = arguments.page(output)
    assert page is not None
    loaded, tokenizer = _with_tokenizer(directory)
    texts = token_texts(tokenizer)
    chosen = substrate.sample_rows(len(texts), rows, seed)
    matrix, scripts = loaded.matrix[chosen], substrate.named_scripts([texts[token] for token in chosen])
    with progress().status("placing the rows …"):
        placed = substrate.on_a_plane(matrix, seed)
    points: dict[str, list[tuple[float, float]]] = {}
    for script, (x, y) in zip(scripts, placed.tolist(), strict=True):
        points.setdefault(script, []).append((x, y))
    facts = [("fingerprint", loaded.fingerprint), *((n, f"{v}") for n, v in loaded.recipe.to_dict().items())]
    report = map_report(points, *substrate.with_own_nearest(matrix, scripts), facts, arguments.command())
    write_page(page, as_html(report))
    progress().print(plain(f"{page}: {report.takeaway}"))


def _with_tokenizer(directory: Path) -> Any:
    """A substrate and its own tokenizer.

    Raises:
        TreeringError: they are damaged, or do not belong to each other.
    """
    from treering import substrate
    from treering import tokenizer as tokenizers

    loaded, tokenizer = substrate.load(directory), tokenizers.load(directory)
    substrate.require_same(loaded, tokenizer)
    return loaded, tokenizer


def _characters(text: str) -> str:
    """The code points of a short text, with their names if it is but one."""
    import unicodedata

    points = " ".join(f"U+{ord(character):04X}" for character in text[:6]) + (" …" if len(text) > 6 else "")
    return f"{points} {unicodedata.name(text, '')}".rstrip() if len(text) == 1 else points


def _show(made: Any, directory: Path) -> None:
    """The table of a substrate."""
    from rich.table import Table

    from treering.cli.console import plain, results

    console = results()
    console.print(plain(str(directory)))
    console.print(plain(made.fingerprint), soft_wrap=True)  # on a line of its own, whole
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in made.recipe.to_dict().items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else value)
    table.add_row("numbers", f"{made.matrix.numel():,}" + (" (frozen)" if made.frozen else " (to be trained)"))
    table.add_section()
    for name, value in made.report.items():
        shown = ("yes" if value else "no") if isinstance(value, bool) else f"{value:,}" if value is not None else "-"
        table.add_row(LABELS.get(name, name), shown)
    console.print(table)


def _print_json(document: dict[str, Any]) -> None:
    import json

    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
