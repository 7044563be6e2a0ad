"""What several commands read from their arguments: names before ``=``, and texts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from treering.errors import TreeringError

TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="run Python code that comes with a model, if transformers lacks its kind"),
]

Speculate = Annotated[
    bool,
    typer.Option(help="let a composition's most credible expert lead and the others check: the same at less cost"),
]

Page = Annotated[Path | None, typer.Option("--output", "-o", help="also write a page, as PAGE.html")]


def _set(example: str) -> Any:
    return typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help=f"a field of the recipe, as {example} (YAML); again for another",
        show_default=False,
    )


SetOfRun = Annotated[list[str] | None, _set("training.learning_rate=1e-3")]
SetOfStudy = Annotated[list[str] | None, _set("training.epochs=2 or seeds.0=7")]
SetOfOverlap = Annotated[list[str] | None, _set("training.tokens=500_000 or seeds.0=7")]
SetOfCorpus = Annotated[list[str] | None, _set("block_size=256")]


def with_example(what: str, command: str) -> str:
    """The help of a group of commands."""
    return f"{what}\n\nExample: treering {command}"


class DocumentRule(str, Enum):
    """What one document is in plain text."""

    passage = "passage"
    paragraph = "paragraph"
    line = "line"
    file = "file"


def command() -> str:
    """What was typed, as a page says how it is made again; a name in it cannot act on who reads or copies it."""
    import shlex

    from treering.reading import printable

    return shlex.join(["treering", *(printable(word, 4096) for word in sys.argv[1:])])


def page(output: Path | None) -> Path | None:
    """Where a page goes, before anything is computed for it.

    Raises:
        TreeringError: its name does not end in .html, or something else than a page of ours is there.
    """
    from treering.report import require_ours

    if output is not None:
        if output.suffix != ".html":
            raise TreeringError(f"{output} should end in .html: it will be a page.")
        require_ours(output)
    return output


def contents(file: Path) -> str:
    """A file's text (of ``-``, what comes in) as it is, but for the line end that closes it.

    Raises:
        TreeringError: it is not UTF-8.
    """
    stdin = str(file) == "-"
    data = sys.stdin.buffer.read() if stdin else file.read_bytes()
    try:
        return data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        what = "What comes in" if stdin else file
        raise TreeringError(f"{what} is not UTF-8 text (byte {error.start:,}). Convert it first.") from error


def listed(text: str) -> list[str]:
    """The names in a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def named(entry: str) -> tuple[str, str]:
    """Name and path of ``NAME=PATH``, or of a path whose last part is its name."""
    name, _, path = entry.rpartition("=")
    return name or Path(path).absolute().name, path


def models(entries: Sequence[str]) -> dict[str, str]:
    """By name, the paths of ``[NAME=]PATH``.

    Raises:
        TreeringError: two have one name.
    """
    found: dict[str, str] = {}
    for name, path in map(named, entries):
        if name in found:
            raise TreeringError(f"Two models are called {name!r}; name them: NAME=DIR.")
        found[name] = path
    return found


def weights(entries: Sequence[str] | None) -> dict[str, float]:
    """By name, the weights of ``NAME=WEIGHT``.

    Raises:
        TreeringError: an entry names nobody, or gives no number.
    """
    found: dict[str, float] = {}
    for name, text in pairs(entries, "WEIGHT"):
        try:
            found[name] = float(text)
        except ValueError:
            raise TreeringError(f"The weight of {name} is {text!r}, which is no number.") from None
    return found


def pairs(entries: Sequence[str] | None, what: str) -> list[tuple[str, str]]:
    """What each ``NAME=WHAT`` says of which name.

    Raises:
        TreeringError: an entry names nobody.
    """
    for entry in entries or []:
        if "=" not in entry:
            raise TreeringError(f"{entry!r} does not say whose it is: write NAME={what}.")
    return [(name, text) for name, _, text in (entry.partition("=") for entry in entries or [])]


def own_texts(entries: Sequence[str] | None) -> dict[str, list[str]]:
    """The texts of each expert, of ``EXPERT=TEXT`` again for each.

    Raises:
        TreeringError: an entry names nobody.
    """
    found: dict[str, list[str]] = {}
    for name, text in pairs(entries, "TEXT"):
        found.setdefault(name, []).append(text)
    return found


def texts_to_measure(
    files: Sequence[str] | None, corpora: Sequence[str] | None, limit: int | None
) -> dict[str, list[str]]:
    """`texts` of which there must be one.

    Raises:
        TreeringError: there is none, or one cannot be read.
    """
    found = texts(files, corpora, limit)
    if not found:
        raise TreeringError("Nothing to measure on: give --data DIR (held-out documents) or --text NAME=FILE.")
    return found


def texts(
    files: Sequence[str] | None,
    corpora: Sequence[str] | None,
    limit: int | None = None,
    split: Literal["validation", "calibration"] = "validation",
) -> dict[str, list[str]]:
    """Documents by the text's name: of files (``NAME=FILE``), and those that prepared corpora hold out.

    Raises:
        TreeringError: a file or a corpus cannot be read.
    """
    from itertools import islice

    from treering.corpus import read_documents
    from treering.evaluation import held_out_texts

    found = {source: documents[:limit] for source, documents in held_out_texts(corpora or [], split).items()}
    for file in files or []:
        name, _, path = file.rpartition("=")
        name = name or Path(path).name.partition(".")[0]
        found[name] = [document.text for document in islice(read_documents(path), limit)]
    return found
