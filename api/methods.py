"""What HTTP asks of every path whatever it is for: `HEAD` beside each `GET`, and an `Allow` that names all methods."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from litestar.types import Message, Scope

__all__ = ["headless", "tell_methods"]

App = Callable[[Any, Any, Any], Awaitable[None]]


async def headless(app: App, scope: Any, receive: Any, send: Any) -> None:
    """Answer `HEAD` with the status and the headers of a `GET`, and without its body.

    The answer is over for the application as soon as it begins, as if the client had gone: a stream makes no more of
    it, and a feed does not wait.
    """
    scope.setdefault("state", {})
    begun = asyncio.Event()

    async def gone() -> Any:
        client, beginning = asyncio.ensure_future(receive()), asyncio.ensure_future(begun.wait())
        try:
            await asyncio.wait((client, beginning), return_when=asyncio.FIRST_COMPLETED)
            return client.result() if client.done() else {"type": "http.disconnect"}
        finally:
            client.cancel()
            beginning.cancel()

    async def head(message: Any) -> None:
        if begun.is_set():
            return
        await send(message)
        if message["type"] == "http.response.start":
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            begun.set()

    await app({**scope, "method": "GET"}, gone, head)


async def tell_methods(message: Message, scope: Scope) -> None:
    """`Allow` with every method of a path, where the framework says it (OPTIONS, 405)."""
    if message["type"] != "http.response.start":
        return
    pairs = list(message.get("headers", ()))
    said = next((value.decode("ascii") for name, value in pairs if name.lower() == b"allow"), None)
    if said is None:
        return
    methods = set(said.split(", ")) | _methods(scope)
    allow = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
    message["headers"] = [*(pair for pair in pairs if pair[0].lower() != b"allow"), (b"allow", allow.encode("ascii"))]


def _methods(scope: Scope) -> set[str]:
    """Of the path of a request that found a handler: the framework's `Allow` names only those of the first handler."""
    template = scope.get("path_template")
    routes = [route for route in scope["litestar_app"].routes if route.path_format == template]
    return {str(method) for route in routes for method in getattr(route, "methods", ())}
