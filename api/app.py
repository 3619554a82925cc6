"""The application: routes, problems, health and the description of itself."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Litestar, Request, Response, get

from api.access import Access, grant_of
from api.feeds import Feeds
from api.methods import headless, tell_methods
from api.parameters import Parameters
from api.ports import ApiSettings, Intake, Reader
from api.problems import on_error, problem_of
from api.records import Records
from api.rejected import Rejected
from api.request_ids import tell_request_id
from api.schema import schema_handlers
from api.tokens import Tokens

__all__ = ["create_app"]


class Application(Litestar):
    """The framework, with a way past it for `POST /records`: its share was half of what such a request cost.

    Guard, handler and problems are the same ones on both ways. `docs/performance.md` has the figures.
    """

    records: Records
    access: Access

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request, or the lifespan."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            await headless(super().__call__, scope, receive, send)
            return
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] != "/records":
            await super().__call__(scope, receive, send)
            return
        scope.setdefault("state", {})
        try:
            self.access.check(scope, "/records")
            response = await self.records.post(scope, receive)
        except Exception as error:
            response = problem_of(scope, error)
        body = response.content
        headers = [
            (b"content-type", str(response.media_type).encode("ascii")),
            (b"content-length", b"%d" % len(body)),
            *((name.encode("ascii"), value.encode("latin-1")) for name, value in response.headers.items()),
        ]
        start: Any = {
            "type": "http.response.start",
            "status": response.status_code,
            "headers": headers,
        }
        await tell_request_id(start, scope)
        await send(start)
        await send({"type": "http.response.body", "body": body, "more_body": False})


def create_app(intake: Intake, reader: Reader, settings: ApiSettings, tokens: Tokens | None = None) -> Application:
    """The ASGI application; without tokens everybody may do everything."""

    @get("/health")
    async def health(request: Request[Any, Any, Any]) -> Response[bytes]:
        """The state of each component; 503 where one is not ok. Who shows no token learns no more than that."""
        Parameters(request.scope["query_string"], ())
        components = reader.health()
        is_ok = all(component["status"] == "ok" for component in components.values())
        if grant_of(request.scope) is None:
            components = {
                name: {"status": "ok" if component["status"] == "ok" else "failing"}
                for name, component in components.items()
            }
        content = {"status": "ok" if is_ok else "failing", "components": components}
        return Response(msgspec.json.encode(content), status_code=200 if is_ok else 503, media_type="application/json")

    @get("/metrics")
    async def metrics(request: Request[Any, Any, Any]) -> Response[bytes]:
        """What Prometheus reads."""
        Parameters(request.scope["query_string"], ())
        content, media_type = reader.metrics()
        return Response(content, media_type=media_type)

    records = Records(intake, reader, settings)
    access = Access(tokens or Tokens())
    app = Application(
        [
            *records.handlers(),
            *Rejected(reader, records).handlers(),
            metrics,
            *Feeds(reader, settings).handlers(),
            health,
            *schema_handlers(),
        ],
        guards=[access.guard],
        exception_handlers={Exception: on_error},
        before_send=[tell_request_id, tell_methods],
        openapi_config=None,
        request_max_body_size=None,
        logging_config=None,
        debug=False,
    )
    app.records, app.access = records, access
    return app
