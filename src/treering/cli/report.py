"""``treering report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from treering.errors import TreeringError


def report(
    directories: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="what train, grow, compose or study made; a page for each")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="the page; STUDY/report.html, or MODEL.html beside the model, if not given"
        ),
    ] = None,
) -> None:
    """Write one self-contained page of a run, a grown model, a composition or a study.

    Example: treering report fi-deep -o fi-deep.html
    """
    from treering.cli.console import plain, progress
    from treering.report import as_html, require_ours, write_page
    from treering.report.directory import page_of, report_of

    if output is not None and len(directories) > 1:
        raise TreeringError("-o is the page of one directory: give one, or leave -o out.")
    pages = {directory: output or page_of(directory) for directory in directories}
    for page in pages.values():
        require_ours(page)
    for directory, page in pages.items():
        found = report_of(directory)
        write_page(page, as_html(found))
        progress().print(plain(f"{page}: {found.takeaway}"))
