"""The application: routes, problems, health and the description of itself."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Litestar, Request, Response, get

from api.access import Access, grant_of
from api.parameters import Parameters
from api.ports import ApiSettings, Intake, Reader
from api.problems import on_error
from api.records import Records
from api.request_ids import tell_request_id
from api.schema import schema_handlers
from api.tokens import Tokens

__all__ = ["create_app"]


def create_app(intake: Intake, reader: Reader, settings: ApiSettings, tokens: Tokens | None = None) -> Litestar:
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

    return Litestar(
        [*Records(intake, reader, settings).handlers(), health, *schema_handlers()],
        guards=[Access(tokens or Tokens()).guard],
        exception_handlers={Exception: on_error},
        before_send=[tell_request_id],
        openapi_config=None,
        request_max_body_size=None,
        logging_config=None,
        debug=False,
    )
