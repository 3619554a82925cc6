"""Every request has an id: the client's `X-Request-Id`, or a new one. Answers, dead letters and the log name it."""

from __future__ import annotations

import secrets
from typing import Any

from litestar.types import Message, Scope

__all__ = ["request_id", "tell_request_id"]

_HEADER = b"x-request-id"
_KEY = "request_id"
_MAX_BYTES = 128


def request_id(scope: Scope | Any) -> str:
    """The id of the request; what a client sends is taken if it is short and printable."""
    state: dict[str, Any] = scope["state"]
    known = state.get(_KEY)
    if known is None:
        given = next((value for name, value in scope["headers"] if name == _HEADER), b"")
        is_usable = 0 < len(given) <= _MAX_BYTES and given.isascii() and given.decode("ascii").isprintable()
        known = state[_KEY] = given.decode("ascii") if is_usable else secrets.token_hex(8)
    return str(known)


async def tell_request_id(message: Message, scope: Scope) -> None:
    """Puts the id into every answer, those of the framework itself among them."""
    if message["type"] == "http.response.start":
        message["headers"] = [*message.get("headers", ()), (_HEADER, request_id(scope).encode("ascii"))]
