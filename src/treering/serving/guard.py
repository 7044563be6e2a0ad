"""Who may ask."""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from treering.serving.errors import ApiError

OPEN = ("/", "/health")
"""Where nobody needs a key: the page, which asks for it, and whether the server runs."""


class Guard:
    """Lets through, to all but `OPEN`, only who has the key; without a key, anybody but other pages in a browser.

    A page from anywhere can make a browser send requests to the reader's own machine, and says so in ``Origin``. It
    cannot know the key.
    """

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self._app = app
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN and (refusal := self._refusal(Headers(scope=scope))):
            await JSONResponse(refusal.body(), refusal.status, refusal.headers)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, headers: Headers) -> ApiError | None:
        if self._key is None:
            if "origin" not in headers or _is_own(headers):
                return None
            return ApiError(403, "Another's page may ask only a server that has an API key.", "origin_refused")
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._key.encode()):
            return None
        message = "Incorrect API key provided." if given else "You didn't provide an API key (Authorization: Bearer)."
        return ApiError(401, message, "invalid_api_key", headers={"www-authenticate": "Bearer"})


def _is_own(headers: Headers) -> bool:
    """Whether a request comes from the server's own page, at an address of this machine.

    That ``Origin`` and ``Host`` are alike is not enough: whoever owns a name can let it lead here (DNS rebinding).
    """
    host = headers.get("host", "")
    return headers["origin"] == f"http://{host}" and _is_loopback(host)


def _is_loopback(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
