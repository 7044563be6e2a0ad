"""One self-contained HTML page per run and study: what it says, and how it becomes HTML."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from treering import __version__
from treering.errors import TreeringError
from treering.output import write_file

GENERATOR = "treering"
"""How what a page says that it was made by begins."""

BETTER, WORSE = "#009e73", "#d55e00"
"""Grounds of cells, blue-green and vermilion, which most colour-blind readers tell apart."""
STRONGEST = 0.45
"""How opaque a ground is at most, so that the page's ink can be read on it in the light and in the dark."""


@dataclass(frozen=True)
class Cell:
    """What stands in a table: a value, smaller what is said of it, and how it is marked.

    Attributes:
        tint: from −1, worse, to 1, better: the strength of its ground, which only repeats what the value says.
        prose: whether it is words, which may stand in several lines.
    """

    value: str
    note: str = ""
    best: bool = False
    tint: float = 0.0
    prose: bool = False

    @property
    def ground(self) -> str:
        """The colour behind it, as a page writes it; nothing where there is none."""
        opacity = round(255 * STRONGEST * min(abs(self.tint), 1))
        return f"{BETTER if self.tint > 0 else WORSE}{opacity:02x}" if opacity else ""


@dataclass(frozen=True)
class Grid:
    """A table: a name for each column (the first one's may be empty), and rows, each with a name of its own."""

    head: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell | str]]]
    note: str = ""

    @property
    def words(self) -> list[bool]:
        """Of each column, the names' first, whether words stand in it, which begin at the left."""

        def has(column: int) -> bool:
            return any(isinstance(cell := cells[column], Cell) and cell.prose for _, cells in self.rows)

        return [False, *map(has, range(len(self.head) - 1))]


@dataclass(frozen=True)
class Drawing:
    """A figure as `treering.report.as_svg` makes it."""

    svg: str
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it: tables, figures, paragraphs."""

    heading: str
    parts: Sequence[Grid | Drawing | str]


@dataclass(frozen=True)
class Report:
    """A page: one sentence that says what was found, then what it is drawn from.

    Attributes:
        facts: by name, what it is made of.
        command: that makes the page, or what it tells of, again.
    """

    title: str
    takeaway: str
    sections: Sequence[Section]
    facts: Sequence[tuple[str, str]] = ()
    command: str = ""


def as_html(report: Report) -> str:
    """The page. It names no date: the same numbers make the same bytes."""
    return render("report", report=report, version=__version__)


def render(template: str, **content: Any) -> str:
    """Fill ``report/TEMPLATE.html.jinja``; text is escaped, a missing value is an error."""
    environment = Environment(
        loader=PackageLoader("treering", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    environment.tests["grid"] = lambda part: isinstance(part, Grid)
    environment.tests["drawing"] = lambda part: isinstance(part, Drawing)
    return environment.get_template(f"{template}.html.jinja").render(generator=GENERATOR, **content)


def _breakable(name: str) -> Markup:
    """A name that a narrow column may break where its parts end, and only then within a part."""
    return Markup(re.sub(r"([_:=])(?=\w)", r"\1<wbr>", str(escape(name))))


def require_ours(path: str | os.PathLike[str]) -> None:
    """Refuse to write a page over anything but an earlier page of Treering's.

    Raises:
        TreeringError: something else is there.
    """
    path = Path(path)
    if not path.exists():
        return
    if path.is_dir() or f'name="generator" content="{GENERATOR}'.encode() not in path.read_bytes():
        raise TreeringError(f"{path} exists and is no page that Treering made: choose another name.")


def write_page(path: str | os.PathLike[str], page: str) -> None:
    """Let a file be a page, whole or not at all.

    Raises:
        TreeringError: see `require_ours`.
    """
    require_ours(path)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_file(path, page)
