"""Who may do what: the one table of routes and roles, and the guard that holds every request against it.

Without tokens in the configuration everybody may do everything (the service then serves loopback only). With tokens a
route that is not in the table is for `admin` alone, so that a new one is closed until somebody has decided. The guard
answers before a byte of the body is read.
"""

from __future__ import annotations

from typing import Any, Literal

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from api.headers import headers
from api.problems import ProblemError
from api.tokens import Grant, Role, Tokens

__all__ = ["ROUTES", "Access", "grant_of"]

Who = Role | Literal["anyone"]

_READ: frozenset[Who] = frozenset({"read"})
_ADMIN: frozenset[Who] = frozenset()
_ANYONE: frozenset[Who] = frozenset({"anyone"})

ROUTES: dict[tuple[str, str], frozenset[Who]] = {
    ("POST", "/records"): frozenset({"ingest"}),
    ("GET", "/records"): _READ,
    ("GET", "/records/aggregations"): _READ,
    ("GET", "/records/{recordId}"): _READ,
    ("GET", "/feeds/notifications"): _READ,
    ("GET", "/feeds/alerts"): _READ,
    ("GET", "/rejected"): _READ,
    ("POST", "/rejected/{id}/resubmit"): _ADMIN,
    ("GET", "/metrics"): _READ,
    ("GET", "/health"): _ANYONE,
    ("GET", "/schema"): _ANYONE,
    ("GET", "/schema/openapi.json"): _ANYONE,
}
"""The roles beside `admin`, which may do everything. Parameters of paths match whatever they are called."""

_KEY = "grant"
_EVERYTHING = Grant("anonymous", "admin")


class Access:
    """The guard of an application."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._allowed = {(method, _shape(path)): roles for (method, path), roles in ROUTES.items()}

    async def guard(self, connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        """`check` for the framework. It waits for nothing, but a plain function would be called in another thread."""
        self.check(connection.scope, connection.scope["path_template"])

    def check(self, scope: Any, path_template: str) -> None:
        """Let a request through, or raise a 401 or 403 problem. The grant stands in the scope for the handler."""
        if not self._tokens:
            scope["state"][_KEY] = _EVERYTHING
            return
        method = str(scope["method"])
        allowed = self._allowed.get((method, _shape(path_template)), _ADMIN)
        given = headers(scope, b"authorization")
        grant = self._grant(given)
        scope["state"][_KEY] = grant
        if "anyone" in allowed or method == "OPTIONS":
            return
        if grant is None:
            bearer = 'Bearer error="invalid_token"' if given else "Bearer"
            detail = "this takes a token that is known here, as in Authorization: Bearer olk_…"
            raise ProblemError(401, "unauthorized", detail, headers={"www-authenticate": bearer})
        if grant.role != "admin" and grant.role not in allowed:
            needed = " or ".join([*sorted(allowed), "admin"])
            raise ProblemError(
                403, "forbidden", f"this takes the role {needed}; the token {grant.name!r} is {grant.role}"
            )

    def _grant(self, given: list[str]) -> Grant | None:
        if len(given) != 1:
            return None
        scheme, _, token = given[0].partition(" ")
        return self._tokens.find(token.strip(" ")) if scheme.lower() == "bearer" else None


def grant_of(scope: Any) -> Grant | None:
    """What the sender of a request may do; None where it showed no token that is known."""
    grant: Grant | None = scope["state"].get(_KEY)
    return grant


def _shape(path: str) -> str:
    """A route's path without the names and types of its parameters."""
    parts = path.rstrip("/").split("/")
    return "/".join("{}" if part.startswith("{") else part for part in parts)
