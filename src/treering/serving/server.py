"""Starting and stopping the server."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import os
import socket
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rich.console import Console

from treering import tokenizer as tokenizers
from treering.composition import load_model
from treering.errors import TreeringError
from treering.evaluation import prompt_ids
from treering.location import locate, name_of

if TYPE_CHECKING:
    import uvicorn

    from treering.serving.limits import Limits
    from treering.serving.served import Served

NEEDED = ("starlette", "uvicorn")
"""Packages that only the server needs."""

GRACE = 5
"""Seconds that open connections have when the server is told to stop."""


def serve(
    name_or_path: str | os.PathLike[str],
    host: str = "127.0.0.1",
    port: int = 8000,
    console: Console | None = None,
    api_key: str | None = None,
    limits: Limits | None = None,
    trust_remote_code: bool = False,
    rule: str | None = None,
    drawn: bool = False,
    speculates: bool = True,
) -> None:
    """Serve an expert or a composition, from a directory or the hub, until Ctrl-C.

    Args:
        api_key: what clients have to know; without one, only the machine itself is listened to.
        limits: how much clients may take; by default that of `treering.serving.limits.Limits`.
        rule: join a composition's experts by another rule than its own.
        drawn: answer by one expert, drawn for the whole answer, whoever asks for plain sampling (temperature and top-p
            1, no bias, no penalty): the same distribution at less cost, see ``treering.composition.draw``. Other
            requests are answered by all experts.
        speculates: let a composition's most credible expert lead: the same text at less cost, see
            ``treering.composition.speculative``. Where an answer tells what was said of each token, nobody leads.

    Raises:
        TreeringError: optional packages are missing, the address cannot be listened on, or not without a key, there is
            no such model or rule, no expert can be drawn, or its tokenizer has no separator.
    """
    if not all(map(find_spec, NEEDED)):
        raise TreeringError("The server needs packages that are not installed: pip install 'treering[serve]'")
    from treering.serving.served import Served

    console = console or Console(stderr=True)
    with contextlib.suppress(KeyboardInterrupt), listen(host, port) as listener:
        require_key(listener, api_key)
        model = load_model(name_or_path, rule=rule, trust_remote_code=trust_remote_code)
        tokenizer = tokenizers.load(name_or_path, trust_remote_code)
        served = Served(served_name(name_or_path), model, tokenizer, limits, drawn, speculates)
        prompt_ids(served.model, served.tokenizer, "", 1)  # what can never work is said before anybody asks
        host, port = listener.getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        console.print(
            f"{served.name} at {address}/v1, to play with at {address}/; Ctrl-C stops it",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        with served:
            http_server(served, api_key).run(sockets=[listener])


def served_name(name_or_path: str | os.PathLike[str]) -> str:
    """What clients call the model: its directory's name, or its name on the hub."""
    return name_of(locate(name_or_path))


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


def require_key(listener: socket.socket, api_key: str | None) -> None:
    """Refuse to let other machines ask without a key.

    Raises:
        TreeringError: the socket's address is not a loopback one and there is no key; or a key cannot be one.
    """
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key != ""):
        raise TreeringError("An API key is sent in a header: give printable ASCII characters, no space at either end.")
    address = listener.getsockname()[0]
    if api_key is None and not ipaddress.ip_address(address).is_loopback:
        raise TreeringError(
            f"Whoever reaches {address} could use the model. Give an API key that clients have to know, in the "
            "environment as TREERING_API_KEY or by --api-key, or listen on 127.0.0.1 only."
        )


def http_server(served: Served, api_key: str | None = None) -> uvicorn.Server:
    """uvicorn with the application; when it is told to stop, it ends what is being written."""
    import uvicorn

    from treering.serving.app import create_app
    from treering.serving.connections import Connection

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            served.stopping.set()  # uvicorn waits for open connections, however much is still to be written
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # a second Ctrl-C breaks them off: no error
            await super().shutdown(sockets)

    connection: Any = partial(Connection, served.limits)
    app = create_app(served, api_key)
    return Server(uvicorn.Config(app, http=connection, ws="none", log_level="error", timeout_graceful_shutdown=GRACE))
