"""An OpenAI-compatible server for one model; the parts that need the optional packages are imported when it starts."""

from treering.serving.server import serve

__all__ = ["serve"]
