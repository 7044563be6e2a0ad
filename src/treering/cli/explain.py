"""``treering explain``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from treering.cli import arguments
from treering.cli.completion import offered

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table
    from rich.text import Text

    from treering.evaluation import Attribution


def explain(
    model: Annotated[str, typer.Argument(metavar="DIR", help="a composition")],
    text: Annotated[str | None, typer.Argument(help="what it shall read, - for what comes in; or give --file")] = None,
    file: Annotated[Path | None, typer.Option(help="a file of text (UTF-8); - is standard input")] = None,
    rule: Annotated[
        str | None,
        typer.Option(autocompletion=offered("rule"), help="look through another rule, as evidence:switch=0.02"),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="write a page, as explanation.html")] = None,
    json: Annotated[bool, typer.Option("--json", help="a record for each token instead")] = False,
) -> None:
    """Show which expert knew which word of a text.

    Example: treering explain joined "Olipa kerran … volt egyszer" -o who-knew.html
    """
    from rich.text import Text

    from treering.cli.console import plain, progress, results
    from treering.composition import load_model, running
    from treering.errors import TreeringError
    from treering.evaluation import explain as attribute
    from treering.evaluation.attribution import require_composition
    from treering.report import require_ours, write_page
    from treering.report.explanation import explanation
    from treering.tokenizer import load

    if text == "-" and file is None:
        text, file = None, Path("-")
    if (text is None) == (file is None):
        raise TreeringError('Give either a text or a file: treering explain DIR "text", or --file FILE.')
    if output is not None:
        require_ours(output)
    read = text if file is None else arguments.contents(file)
    assert read is not None
    console = progress()
    with console.status("reading …"), running(model):
        composition = require_composition(load_model(model))
        if rule is not None:
            composition.use(rule)
        attribution = attribute(composition, load(model), read)
    if json:
        print(_as_json(attribution.rows()))
    else:
        out = results()
        out.print(coloured(attribution), soft_wrap=True)
        if out.color_system is None or out.no_color:
            out.print(Text(), passages(attribution))
        out.print(Text(), totals(attribution))
    if output is not None:
        write_page(output, explanation(attribution, _command(model, text, file, rule, output)))
        console.print(plain(f"{output}: the same to point at, with the weights along the text"))


def coloured(attribution: Attribution) -> Text:
    """The text on the experts' colours: strong where one has all the credit, white where all have the same."""
    from rich.text import Text

    from treering.reading import visible
    from treering.report.explanation import colours, shade

    pieces, palette = attribution.pieces(), colours(len(attribution.experts))
    shown = Text()
    for (start, end), credit in zip(pieces.spans, pieces.credit.T.tolist(), strict=True):
        colour, sure = shade(credit, palette)
        shown.append(visible(attribution.text[start:end]), _highlight(colour, 0.6 * sure))
    return shown


def passages(attribution: Attribution) -> Table:
    """Where colours cannot say it: who knew which passage, one after the other; – where nobody knew it much better."""
    from rich.table import Table
    from rich.text import Text

    from treering.cli.console import plain
    from treering.reading import visible
    from treering.report.explanation import leader

    pieces = attribution.pieces()
    table = Table("knew it", "passage", box=None)
    runs: list[tuple[str, str]] = []
    for (start, end), credit in zip(pieces.spans, pieces.credit.T.tolist(), strict=True):
        best, text = leader(credit), attribution.text[start:end]
        name = "–" if best is None else attribution.experts[best]
        if runs and (runs[-1][0] == name or text.isspace()):
            runs[-1] = runs[-1][0], runs[-1][1] + text
        else:
            runs.append((name, text))
    for name, text in runs:
        table.add_row(plain(name), Text(visible(text.strip())))
    return table


def totals(attribution: Attribution) -> Table:
    """The legend, and for each expert its share of the credit and its bits per byte."""
    from rich.table import Table
    from rich.text import Text

    from treering.cli.console import plain
    from treering.report.explanation import colours

    table = Table(box=None)
    table.add_column(plain(f"joined by {attribution.rule}"))
    for column in ("share of tokens", "share of bytes", "bits per byte"):
        table.add_column(column, justify="right")
    for share, colour in zip(attribution.shares(), colours(len(attribution.experts)), strict=True):
        name = Text(f" {share['expert']} ", _highlight(colour, 0.6))
        table.add_row(name, f"{share['tokens']:.1%}", f"{share['bytes']:.1%}", f"{share['bits_per_byte']:.3f}")
    table.add_row(" together", "", "", f"[bold]{attribution.bits_per_byte:.3f}[/]")
    return table


def _highlight(colour: tuple[float, float, float], strength: float) -> str:
    """Dark ink on the colour, thinned with white."""
    red, green, blue = (round(255 * (1 - strength + strength * channel)) for channel in colour)
    return f"#1a1a1a on #{red:02x}{green:02x}{blue:02x}"


def _command(model: str, text: str | None, file: Path | None, rule: str | None, output: Path) -> str:
    from treering.reading import printable

    def name(of: object) -> str:
        return printable(str(of), 4096)

    words = ["treering", "explain", name(model)]
    words += [text] if text is not None else ["--file", name(file)]
    words += ["--rule", rule] if rule is not None else []
    return shlex.join([*words, "-o", name(output)])


def _as_json(rows: Iterable[object]) -> str:
    """A JSON list with a line for each row."""
    from json import dumps

    return "[\n" + ",\n".join(dumps(row, ensure_ascii=False) for row in rows) + "\n]"
