"""What a keyboard and a screen reader need beyond what Sphinx and the theme give them."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx

NAVIGATION, BODY = "furo_navigation_tree", "body"


def _mend(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Captions that are headings get a level; what may scroll sideways, code and tables, can be reached by Tab."""
    context[NAVIGATION] = context.get(NAVIGATION, "").replace('role="heading"', 'role="heading" aria-level="2"')
    body = context.get(BODY, "").replace("<pre>", '<pre tabindex="0">')
    context[BODY] = body.replace('<div class="table-wrapper', '<div tabindex="0" class="table-wrapper')


def setup(app: Sphinx) -> dict[str, bool]:
    """After the theme has made the navigation."""
    app.connect("html-page-context", _mend, priority=900)
    return {"parallel_read_safe": True}
