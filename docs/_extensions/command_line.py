"""The command line's reference, from the commands themselves."""

from __future__ import annotations

import re
from html import unescape

from sphinx.application import Sphinx
from typer import Context
from typer.cli import get_docs_for_click
from typer.main import get_command

from treering.cli.main import app as treering

PLACE = "<!-- every command -->"


def described() -> str:
    """Every command with its arguments and options, as Markdown with headings from the second level on."""
    command = get_command(treering)
    text = unescape(get_docs_for_click(obj=command, ctx=Context(command), name="treering", indent=1))
    # Groups list what stands below them anyway, cut short.
    text = re.sub(r"^\*\*Commands\*\*:\n\n(\* .*\n)+\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^\* `--help`: .*\n", "", text, flags=re.MULTILINE)
    return re.sub(r"^Example: (.*)$", _example, text, flags=re.MULTILINE)


def _example(found: re.Match[str]) -> str:
    commands = found[1].split(", then ")
    return "\n".join(["```console", *(f"$ {command}" for command in commands), "```"])


def _write(app: Sphinx, page: str, source: list[str]) -> None:
    if PLACE in source[0]:
        source[0] = source[0].replace(PLACE, described())


def setup(app: Sphinx) -> dict[str, bool]:
    """Put the commands where a page asks for them."""
    app.connect("source-read", _write)
    return {"parallel_read_safe": True}
