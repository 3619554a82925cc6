"""The one place where what went wrong becomes an RFC 9457 problem with a stable `code`."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

from api.request_ids import request_id
from store.errors import (
    AnswerTooLargeError,
    CorruptionError,
    DamagedFileError,
    DiskFullError,
    InputError,
    InvalidSchemaError,
    QueryError,
    QueryMemoryError,
    QueryTimeError,
    QueueFullError,
    StoppingError,
    TooLargeError,
    TransientError,
    UnknownFormatError,
)

__all__ = ["MEDIA_TYPE", "ProblemError", "on_error", "problem", "problem_body", "problem_of", "title_of"]

logger = logging.getLogger("oncelake.api")

MEDIA_TYPE = "application/problem+json"


_TITLES = {413: "Content Too Large", 422: "Unprocessable Content"}
"""As in RFC 9110: Python 3.11 and 3.13 do not call them the same."""


class ProblemError(Exception):
    """A problem that the API itself finds."""

    def __init__(
        self, status: int, code: str, detail: str, *, headers: dict[str, str] | None = None, **members: Any
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.headers = headers
        self.members = members


def problem(
    status: int, code: str, detail: str, *, headers: dict[str, str] | None = None, **members: Any
) -> Response[bytes]:
    """A problem as a response; `members` stand beside the fixed ones."""
    body = problem_body(status, code, detail, **members)
    return Response(body, status_code=status, media_type=MEDIA_TYPE, headers=headers or {})


def problem_body(status: int, code: str, detail: str, **members: Any) -> bytes:
    """The bytes of a problem."""
    content = {
        "type": "about:blank",
        "title": title_of(status),
        "status": status,
        "detail": detail,
        "code": code,
    }
    return msgspec.json.encode({**content, **members})


def title_of(status: int) -> str:
    """The words for a status, whatever the version of Python."""
    return _TITLES.get(status) or HTTPStatus(status).phrase


def on_error(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """The problem that an exception of a handler is, for the framework."""
    return problem_of(request.scope, error)


def problem_of(scope: Any, error: Exception) -> Response[bytes]:
    """The problem that an exception is."""
    match error:
        case ProblemError():
            return problem(error.status, error.code, str(error), headers=error.headers, **error.members)
        case QueryError():
            named: dict[str, Any] = {"parameter": error.parameter} if error.parameter else {}
            return problem(400, "invalid_parameter", str(error), **named)
        case AnswerTooLargeError():
            return problem(422, "answer_too_large", str(error))
        case QueryTimeError():
            return problem(503, "query_timeout", str(error))
        case QueryMemoryError():
            return problem(503, "query_memory", str(error))
        case InputError():
            position: dict[str, Any] = {"position": error.position} if error.position else {}
            return problem(_input_status(error), error.code, str(error), **position)
        case QueueFullError():
            return problem(429, "queue_full", str(error), headers={"retry-after": str(error.retry_after_s)})
        case DiskFullError():
            return problem(507, "disk_full", str(error))
        case StoppingError():
            return problem(503, "stopping", str(error), headers={"retry-after": "5"})
        case TransientError():
            return problem(503, "unavailable", str(error), headers={"retry-after": "1"})
        case HTTPException():
            return _of_framework(scope, error)
        case DamagedFileError():
            return problem(500, "corruption", str(error), file=error.file)
        case CorruptionError():
            logger.error("%s %s (request %s): %s", *_named(scope), error, extra=_fields(scope))
            return problem(500, "corruption", "stored data is damaged: the operator finds it in the log")
    logger.error("%s %s (request %s) failed", *_named(scope), exc_info=error, extra=_fields(scope))
    return problem(500, "internal", "the service failed to answer; what went wrong is in its log")


def _named(scope: Any) -> tuple[str, str, str]:
    """Method, path as the client wrote it (the decoded one may hold line breaks) and id of a request."""
    return str(scope["method"]), bytes(scope["raw_path"]).decode("latin-1"), request_id(scope)


def _fields(scope: Any) -> dict[str, dict[str, str]]:
    return {"fields": {"request": request_id(scope)}}


def _input_status(error: InputError) -> int:
    if isinstance(error, InvalidSchemaError):
        return 422
    if isinstance(error, TooLargeError):
        return 413
    return 415 if isinstance(error, UnknownFormatError) else 400


_FRAMEWORK = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
}


def _of_framework(scope: Any, error: HTTPException) -> Response[bytes]:
    status = error.status_code
    code = _FRAMEWORK.get(status, "bad_request" if status < 500 else "internal")
    details = {
        404: "there is nothing at this path; GET /schema lists what there is",
        405: f"{scope['method']} is no method of this path; the header Allow lists those that it has",
    }
    detail = details.get(status) or (error.detail if status < 500 else "internal error")
    return problem(status, code, detail, headers=dict(error.headers or {}))
