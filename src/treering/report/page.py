"""One self-contained HTML page per run or study."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **content: Any) -> str:
    """Fill ``report/TEMPLATE.html.jinja``; text is escaped, a missing value is an error."""
    environment = Environment(
        loader=PackageLoader("treering", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(f"{template}.html.jinja").render(**content)
