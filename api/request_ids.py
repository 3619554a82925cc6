"""Every request has an id: the client's `X-Request-Id`, or a new one. Answers, dead letters and the log name it."""

from __future__ import annotations

import itertools
import secrets
from typing import Any

from litestar.types import Message, Scope

from api.headers import header

__all__ = ["request_id", "tell_request_id"]

_HEADER = b"x-request-id"
_KEY = "request_id"
_MAX_BYTES = 128
_PROCESS = secrets.token_hex(6)
_numbers = itertools.count(1)


def request_id(scope: Any) -> str:
    """The id of the request; what a client sends is taken if it is short and printable."""
    state: dict[str, Any] = scope["state"]
    known = state.get(_KEY)
    if known is None:
        given = header(scope, _HEADER) or ""
        is_usable = 0 < len(given) <= _MAX_BYTES and given.isascii() and given.isprintable()
        known = state[_KEY] = given if is_usable else f"{_PROCESS}-{next(_numbers)}"
    return str(known)


async def tell_request_id(message: Message, scope: Scope) -> None:
    """Puts the id into every answer, those of the framework itself among them."""
    if message["type"] == "http.response.start":
        message["headers"] = [*message.get("headers", ()), (_HEADER, request_id(scope).encode("ascii"))]
