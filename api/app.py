"""The application: routes, problems, health and the description of itself."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec
from litestar import Litestar, Request, Response, get
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from api.parameters import Parameters
from api.ports import ApiSettings, Intake, Reader
from api.problems import on_error
from api.records import Records
from api.schema import schema_handlers

__all__ = ["create_app"]

_REQUEST_ID = b"x-request-id"


def create_app(intake: Intake, reader: Reader, settings: ApiSettings) -> Litestar:
    """The ASGI application."""

    @get("/health")
    async def health(request: Request[Any, Any, Any]) -> Response[bytes]:
        """The state of each component; 503 where one is not ok."""
        Parameters(request.scope["query_string"], ())
        components = reader.health()
        is_ok = all(component["status"] == "ok" for component in components.values())
        content = {"status": "ok" if is_ok else "failing", "components": components}
        return Response(msgspec.json.encode(content), status_code=200 if is_ok else 503, media_type="application/json")

    return Litestar(
        [*Records(intake, reader, settings).handlers(), health, *schema_handlers()],
        exception_handlers={Exception: on_error},
        middleware=[_with_request_id],
        openapi_config=None,
        request_max_body_size=None,
        logging_config=None,
        debug=False,
    )


def _with_request_id(app: ASGIApp) -> ASGIApp:
    """Every request has an id: the client's `X-Request-Id`, or a new one; dead letters and the log name it."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP:
            given = next((value for name, value in scope["headers"] if name == _REQUEST_ID), b"")
            is_usable = 0 < len(given) <= 128 and given.isascii() and given.decode("ascii").isprintable()
            scope["state"]["request_id"] = given.decode("ascii") if is_usable else secrets.token_hex(8)
        await app(scope, receive, send)

    return middleware
