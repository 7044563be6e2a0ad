"""The page to play with at the server's address: one file, with its style and its script inside."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup


@cache
def page() -> str:
    """The page, the same for every server: it holds no secret, and asks the server for all else."""
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(
        _read("page.html.jinja")
    )
    return template.render(style=Markup(_read("page.css")), script=Markup(_read("page.js")))


@cache
def headers() -> dict[str, str]:
    """What a browser is told of the page: nothing runs or is asked but what it has and the server itself."""
    policy = {
        "default-src": "'none'",
        "style-src": _hashed("page.css"),
        "script-src": _hashed("page.js"),
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


def _hashed(name: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(_read(name).encode()).digest()).decode()}'"


@cache
def _read(name: str) -> str:
    return (files(__name__) / name).read_text(encoding="utf-8")
