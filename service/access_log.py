"""One log line for each request, once it is answered: who asked for what, with which outcome and how long it took."""

from __future__ import annotations

import logging
import time
from typing import Any, Literal

from api.access import grant_of
from api.request_ids import request_id

__all__ = ["AccessLog"]

logger = logging.getLogger("oncelake.access")

_FAILED = 400


class AccessLog:
    """An application around another one. `which` requests are logged: all, or those that were answered 400 and above
    and those whose client went away. No token and no query string is ever in a line.
    """

    def __init__(self, app: Any, which: Literal["errors", "all"]) -> None:
        self._app = app
        self._from_status = _FAILED if which == "errors" else 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = size = 0

        async def sending(message: Any) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                size += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            if status >= self._from_status or not status:
                _tell(scope, status, size, (time.perf_counter() - began) * 1e3)


def _tell(scope: Any, status: int, size: int, ms: float) -> None:
    scope.setdefault("state", {})
    grant = grant_of(scope)
    fields = {
        "request": request_id(scope),
        "method": scope["method"],
        "path": bytes(scope["raw_path"]).partition(b"?")[0].decode("latin-1"),
        "status": status or None,
        "ms": round(ms, 1),
        "bytes": size,
        "client": (scope.get("client") or ("-",))[0],
        "token": grant.name if grant else None,
    }
    logger.info(
        "%s %s %s in %.1f ms, %d bytes, to %s (token %s, request %s)",
        fields["method"],
        fields["path"],
        status or "not answered",
        ms,
        size,
        fields["client"],
        fields["token"] or "-",
        fields["request"],
        extra={"fields": fields},
    )
