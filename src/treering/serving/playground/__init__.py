"""The page to play with at the server's address: one file, with its style and its script inside."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from treering.report.explanation import OKABE_ITO

SCRIPT = (
    *("state", "elements", "voices", "pieces", "text", "legend", "strip", "choosing", "token", "branches", "settings"),
    *("server", "writing", "chat", "actions", "programs", "room", "beginning"),
)
"""The files of ``script/`` in the order in which the page has them, all in one scope: what they begin with comes first,
and what lets them begin last."""


@cache
def page() -> str:
    """The page, the same for every server: it holds no secret, and asks the server for all else."""
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(
        _read("page.html.jinja")
    )
    return template.render(style=Markup(_style()), script=Markup(_script()), palette=" ".join(OKABE_ITO))


@cache
def headers() -> dict[str, str]:
    """What a browser is told of the page: nothing runs or is asked but what it has and the server itself."""
    policy = {
        "default-src": "'none'",
        "style-src": _hashed(_style()),
        "script-src": _hashed(_script()),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "x-content-type-options": "nosniff",
        "referrer-policy": "same-origin",
        "cache-control": "no-cache",
    }


def _style() -> str:
    return _read("page.css")


def _script() -> str:
    return "\n".join(_read(f"script/{name}.js") for name in SCRIPT)


def _hashed(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


@cache
def _read(name: str) -> str:
    return (files(__name__) / name).read_text(encoding="utf-8")
