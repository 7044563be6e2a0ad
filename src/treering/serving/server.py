"""Starting and stopping the server."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from transformers.utils.import_utils import is_serve_available

from treering import tokenizer as tokenizers
from treering.composition import load_model
from treering.errors import TreeringError
from treering.evaluation import prompt_ids
from treering.location import locate

if TYPE_CHECKING:
    import uvicorn

    from treering.serving.answers import Served


def serve(
    name_or_path: str | os.PathLike[str],
    host: str = "127.0.0.1",
    port: int = 8000,
    console: Console | None = None,
) -> None:
    """Serve an expert or a composition, from a directory or the hub, until Ctrl-C.

    Raises:
        TreeringError: optional packages are missing, the address cannot be listened on, there is no such model, or its
            tokenizer has no separator.
    """
    if not is_serve_available():
        raise TreeringError("The server needs packages that are not installed: pip install 'treering[serve]'")
    from treering.serving.answers import Served

    console = console or Console(stderr=True)
    with contextlib.suppress(KeyboardInterrupt), listen(host, port) as listener:
        served = Served(served_name(name_or_path), load_model(name_or_path), tokenizers.load(name_or_path))
        prompt_ids(served.model, served.tokenizer, "", 1)  # what can never work is said before anybody asks
        host, port = listener.getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        console.print(f"{served.name} at {address}/v1; Ctrl-C stops it", highlight=False, markup=False)
        with served.thread:
            http_server(served).run(sockets=[listener])


def served_name(name_or_path: str | os.PathLike[str]) -> str:
    """What clients call the model: its directory's name, or its name on the hub."""
    place = locate(name_or_path, "model")
    return Path(place).resolve().name if Path(place).is_dir() else place


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections; they wait until the model is loaded.

    Raises:
        TreeringError: the port is taken or forbidden, or there is no such address here.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a name of a host"
        hint = " Stop what runs there, or choose another --port." if _taken(error) else ""
        raise TreeringError(f"Cannot listen on port {port} of {host}: {why}.{hint}") from error


def _taken(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EADDRINUSE


def http_server(served: Served) -> uvicorn.Server:
    """uvicorn with the application; when it is told to stop, it ends what is being written."""
    import uvicorn

    from treering.serving.app import create_app

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            served.stopping.set()  # uvicorn waits for open connections, however much is still to be written
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # a second Ctrl-C breaks them off: no error
            await super().shutdown(sockets)

    return Server(uvicorn.Config(create_app(served), log_level="warning"))
