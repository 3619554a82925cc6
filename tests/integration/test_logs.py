"""What the service says of requests: a line each, with the id that the answer has, and never a secret."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from litestar import Litestar, Response, get
from litestar.testing import TestClient

from api.access import Access
from api.problems import on_error
from api.request_ids import tell_request_id
from api.tokens import Token, Tokens, hash_of
from service.access_log import AccessLog
from service.logs import configure_logging

SECRET = "olk_" + 43 * "a"  # noqa: S105


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    asking = logging.getLogger("httpx")
    asking.disabled = True  # it logs what the test itself asks
    yield
    asking.disabled = False
    root.handlers[:] = handlers
    root.setLevel(level)


def client(which: Literal["errors", "all"]) -> TestClient[Any]:
    @get("/health")
    async def health() -> Response[bytes]:
        return Response(b"fine", media_type="text/plain")

    @get("/metrics")
    async def metrics() -> Response[bytes]:
        raise RuntimeError("broken on purpose")

    access = Access(Tokens((Token("meters", "read", hash_of(SECRET)),)))
    app = Litestar(
        [health, metrics],
        guards=[access.guard],
        exception_handlers={Exception: on_error},
        before_send=[tell_request_id],
        openapi_config=None,
        logging_config=None,
        debug=False,
    )
    return TestClient(AccessLog(app, which))  # type: ignore[arg-type]


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    text = capsys.readouterr().err
    assert SECRET not in text and "aaaa" not in text
    return [line for line in map(json.loads, text.splitlines()) if line["logger"].startswith("oncelake")]


def test_each_request_has_a_line_with_its_id(capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON with members for machines; the query is left out."""
    configure_logging("info", "json")
    with client("all") as asked:
        answer = asked.get(
            "/health?secret=" + SECRET, headers={"authorization": f"Bearer {SECRET}", "x-request-id": "my-1"}
        )
    assert answer.headers["x-request-id"] == "my-1"
    (line,) = [line for line in lines(capsys) if line["logger"] == "oncelake.access"]
    told = {name: line[name] for name in ("request", "method", "path", "status", "bytes", "client", "token", "level")}
    assert told == {
        "request": "my-1",
        "method": "GET",
        "path": "/health",
        "status": 200,
        "bytes": 4,
        "client": "testclient",
        "token": "meters",
        "level": "info",
    }
    assert 0 <= line["ms"] < 60_000
    assert line["message"].startswith("GET /health 200 in ") and line["message"].endswith(
        "(token meters, request my-1)"
    )


def test_by_default_only_what_went_wrong_has_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Refusals and failures; the failure's own line has the same id, and the stack."""
    configure_logging("info", "json")
    with client("errors") as asked:
        assert asked.get("/health").status_code == 200
        assert asked.get("/metrics").status_code == 401
        failed = asked.get("/metrics", headers={"authorization": f"Bearer {SECRET}"})
    assert failed.status_code == 500 and "broken on purpose" not in failed.text
    found = lines(capsys)
    assert [(line["status"], line["token"]) for line in found if line["logger"] == "oncelake.access"] == [
        (401, None),
        (500, "meters"),
    ]
    (stack,) = [line for line in found if "exception" in line]
    assert "broken on purpose" in stack["exception"] and stack["request"] == failed.headers["x-request-id"]


def test_a_line_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    """One line, whatever the client has sent as its id."""
    configure_logging("info", "human")
    with client("all") as asked:
        asked.get("/health", headers={"x-request-id": "a\tb"})
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "oncelake.access" in line]
    assert " INFO oncelake.access: GET /health 200 in " in line and "\t" not in line
