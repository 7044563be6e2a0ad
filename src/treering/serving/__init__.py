"""An OpenAI-compatible server for one model; the parts that need the optional packages are imported when it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treering.serving.server import serve as serve


def __getattr__(name: str) -> Any:
    """``serve``, imported when it is used: the process that renders chat templates must not wait for PyTorch."""
    if name != "serve":
        raise AttributeError(f"module 'treering.serving' has no attribute {name!r}")
    from treering.serving.server import serve

    return serve
