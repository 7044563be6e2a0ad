"""Errors in the form that OpenAI's clients understand."""

from __future__ import annotations

from typing import Any

BUSY = {"retry-after": "1"}
"""Headers of a refusal that may be gone in a second; OpenAI's clients wait that long and ask again."""

FINAL = {"x-should-retry": "false"}
"""Headers that keep OpenAI's clients from asking the same again, as they else do after any status from 500 on."""


class ApiError(Exception):
    """What a client is told: an HTTP status, a message for people, and a code and a parameter for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """The JSON object that OpenAI's server would send."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}
