"""Who may ask."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from treering.serving.errors import ApiError


class Guard:
    """Lets through, to all but ``/health``, only who has the key; without a key, anybody but pages in a browser.

    A page from anywhere can make a browser send requests to the reader's own machine, and says so in ``Origin``. It
    cannot know the key.
    """

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self._app = app
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/health" and (refusal := self._refusal(Headers(scope=scope))):
            await JSONResponse(refusal.body(), refusal.status, refusal.headers)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, headers: Headers) -> ApiError | None:
        if self._key is None:
            if "origin" in headers:
                return ApiError(403, "A page in a browser may ask only a server that has an API key.", "origin_refused")
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._key.encode()):
            return None
        message = "Incorrect API key provided." if given else "You didn't provide an API key (Authorization: Bearer)."
        return ApiError(401, message, "invalid_api_key", headers={"www-authenticate": "Bearer"})
