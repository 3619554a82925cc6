"""`POST /records` and the reading of single records: every status with its bytes."""

from __future__ import annotations

import copy
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from decimal import Decimal
from typing import Any

import httpx
import msgspec
import pytest

from service.connections import ConnectionLimits
from store.errors import (
    CorruptionError,
    DiskFullError,
    InvalidSchemaError,
    OncelakeError,
    QueueFullError,
    StoppingError,
    TooLargeError,
    UndecodableError,
    UnknownFormatError,
)
from store.outcomes import Answer, FieldError, Problem, Reply
from tests.support.app import NOTHING, FakeIntake, Served, served
from tests.support.golden import assert_golden
from tests.support.snapshots import record, snapshot_of

IDS = ["rec-001", "a/b", "a//b", "a/", "aggregations", 'ö "x" 😀%2F', "?", " ", "/", "//", "aggregations/", "😀" * 256]
LIMIT = 20_000


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("lake")
    rows = [record(recordId=name, value=Decimal(number)) for number, name in enumerate(IDS)]
    with served(
        root, snapshot_of(root, rows, 0), limits=ConnectionLimits(body_timeout_s=0.3), max_body_bytes=LIMIT
    ) as found:
        yield found


@pytest.fixture
def lake(running: Served) -> Iterator[Served]:
    fresh = FakeIntake()
    for name, value in vars(fresh).items():
        setattr(running.intake, name, value)
    running.reader.components = {"store": {"status": "ok", "seq": 1}}
    yield running


def answer(**members: Any) -> Answer:
    return msgspec.structs.replace(NOTHING, received=1, **members)


CONFLICT = Problem(3, "r4", "conflict", seq=1, fields=("value",))
REJECTED = Problem(4, None, "rejected", errors=(FieldError("value", "value_scale", "at most 9 digits"),))
BATCH = Answer(5, 2, 1, 1, 1, 1, 2, [CONFLICT, REJECTED], problems_truncated=False)
REFUSED = msgspec.structs.replace(BATCH, first_seq=None, last_seq=None)


@pytest.mark.parametrize(
    ("name", "status", "reply"),
    [
        ("accepted", 201, Reply(answer(accepted=1, first_seq=1, last_seq=1), True, record_id='r "1"')),
        ("duplicate", 200, Reply(answer(duplicate=1), True, duplicate_seq=7, record_id="rec-001")),
        ("conflict", 409, Reply(answer(conflict=1, problems=[CONFLICT]), True, record_id="r4")),
        ("rejected", 422, Reply(answer(rejected=1, problems=[REJECTED]), True)),
        ("batch", 200, Reply(BATCH, False)),
        ("empty_batch", 200, Reply(NOTHING, False)),
        ("atomic_refused", 422, Reply(REFUSED, False, atomic_refused=True)),
        ("atomic_refused_single", 422, Reply(answer(conflict=1, problems=[CONFLICT]), True, True, record_id="r4")),
    ],
)
def test_an_outcome_is_answered_like_this(lake: Served, name: str, status: int, reply: Reply) -> None:
    """Status, media type and bytes of contract section 4."""
    lake.intake.reply = reply
    found = lake.post()
    is_problem = status >= 400
    assert found.status_code == status
    assert found.headers["content-type"] == ("application/problem+json" if is_problem else "application/json")
    assert_golden(f"{'problems' if is_problem else 'posts'}/{name}.json", found.content)


@pytest.mark.parametrize(
    ("name", "status", "failure"),
    [
        ("undecodable", 400, UndecodableError("the JSON ends early", position="byte 17")),
        ("too_large", 413, TooLargeError("over 256 MiB decompressed (ingest.max_decompressed_bytes)")),
        ("unsupported_format", 415, UnknownFormatError("image/png is no format of ours")),
        ("invalid_schema", 422, InvalidSchemaError("the column value is missing")),
        ("queue_full", 429, QueueFullError("too much waits", retry_after_s=3)),
        ("stopping", 503, StoppingError("the service is stopping")),
        ("disk_full", 507, DiskFullError("no room on the device")),
        ("corruption", 500, CorruptionError("/secret/path: damaged")),
        ("internal", 500, ValueError("secret")),
        ("internal_of_ours", 500, OncelakeError("secret")),
        ("internal_recursion", 500, RecursionError("secret")),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_a_failure_is_this_problem(lake: Served, name: str, status: int, failure: Exception, late: bool) -> None:
    """Whether it comes at once or from the committer; 500 never says what is inside."""
    failure = copy.copy(failure)  # the parameter outlives the test, and with its traceback the whole application
    lake.intake.late_failure, lake.intake.failure = (failure, None) if late else (None, failure)
    found = lake.post()
    assert (found.status_code, found.headers["content-type"]) == (status, "application/problem+json")
    assert found.headers.get("retry-after") == {429: "3", 503: "5"}.get(status)
    assert "secret" not in found.text
    assert_golden(f"problems/{name}.json", found.content)


@pytest.mark.parametrize("size", [10, 10_000])
def test_the_intake_gets_what_was_sent(lake: Served, size: int) -> None:
    """Body, media type, encoding, flags and the request's id, for bodies taken inline and in a thread."""
    body = bytes(size)
    headers = {"content-type": "Text/CSV; charset=utf-8", "content-encoding": "gzip", "x-request-id": "mine-1"}
    found = lake.client.post("/records?atomic=true&dryRun=false", content=body, headers=headers)
    assert lake.intake.calls == [
        {
            "body": body,
            "media_type": "Text/CSV; charset=utf-8",
            "encoding": "gzip",
            "atomic": True,
            "dry_run": False,
            "request_id": "mine-1",
        }
    ]
    assert found.headers["x-request-id"] == "mine-1"


def test_a_dry_run_of_one_record_is_answered_as_a_batch(lake: Served) -> None:
    """200 whatever would become of it, with no seq."""
    lake.intake.reply = Reply(answer(conflict=1, problems=[CONFLICT]), True, record_id="r4")
    found = lake.post(path="/records?dryRun=true")
    assert (found.status_code, found.json()["conflict"], found.json()["firstSeq"]) == (200, 1, None)


@pytest.mark.parametrize(
    ("name", "query"),
    [("flag", "?atomic=yes"), ("flag_repeated", "?dryRun=true&dryRun=true"), ("post_unknown", "?dryrun=true")],
)
def test_a_parameter_that_is_wrong_is_named(lake: Served, name: str, query: str) -> None:
    """And nothing reaches the intake."""
    found = lake.post(path=f"/records{query}")
    assert found.status_code == 400
    assert lake.intake.calls == []
    assert_golden(f"problems/parameter_{name}.json", found.content)


def test_a_body_without_a_content_type_is_refused_with_a_hint(lake: Served) -> None:
    """415, and what to write."""
    found = lake.client.post("/records", content=b"{}")
    assert found.status_code == 415
    assert_golden("problems/no_content_type.json", found.content)


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_that_is_too_large_is_refused(lake: Served, is_chunked: bool) -> None:
    """413, by its announced length or as soon as it has grown too long; one byte less is taken."""

    def sent(size: int) -> Any:
        return (bytes(1_000) for _ in range(size // 1_000)) if is_chunked else bytes(size)

    headers = {"content-type": "application/json"}
    found = lake.client.post("/records", content=sent(LIMIT + 1_000), headers=headers)
    assert (found.status_code, found.json()["code"]) == (413, "too_large")
    assert "api.max_body_bytes" in found.json()["detail"]
    assert lake.intake.calls == []
    assert lake.client.post("/records", content=sent(LIMIT), headers=headers).status_code == 200


def test_an_endless_body_is_cut_off(lake: Served) -> None:
    """413 comes while the client still sends."""
    with socket.create_connection(("127.0.0.1", lake.port), 10) as connection:
        connection.sendall(
            b"POST /records HTTP/1.1\r\nhost: x\r\ncontent-type: text/csv\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for _ in range(LIMIT // 1_000 + 2):
            connection.sendall(b"3e8\r\n" + bytes(1_000) + b"\r\n")
        assert connection.recv(1_000).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_stalls_is_given_up(lake: Served) -> None:
    """408 and the connection is closed; the service answers others meanwhile."""
    head = b"POST /records HTTP/1.1\r\nhost: x\r\ncontent-type: text/csv\r\ncontent-length: 100\r\n\r\nabc"
    found = lake.raw(head)
    assert found.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"body_timeout"' in found
    assert lake.intake.calls == []


def test_a_client_that_goes_away_while_it_sends_stores_nothing(lake: Served) -> None:
    """A body that is not complete reaches nobody."""
    with socket.create_connection(("127.0.0.1", lake.port), 10) as connection:
        connection.sendall(
            b"POST /records HTTP/1.1\r\nhost: x\r\ncontent-type: text/csv\r\ncontent-length: 100\r\n\r\nabc"
        )
    assert lake.post().status_code == 200
    assert len(lake.intake.calls) == 1


def test_posts_beside_each_other_get_their_own_replies(lake: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds at once, answered from another thread all in one go and in another order."""
    waiting: list[tuple[bytes, Future[Reply]]] = []

    def submit(body: bytes, *_: Any, **__: Any) -> Future[Reply]:
        future: Future[Reply] = Future()
        waiting.append((body, future))
        return future

    monkeypatch.setattr(lake.intake, "submit", submit)
    found: dict[str, str] = {}

    def send(name: str) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{lake.port}", timeout=20) as client:
            posted = client.post("/records", content=name.encode(), headers={"content-type": "application/json"})
            found[name] = posted.json()["recordId"]

    threads = [threading.Thread(target=send, args=(f"r{number}",)) for number in range(40)]
    for thread in threads:
        thread.start()
    while len(waiting) < 40:
        assert any(thread.is_alive() for thread in threads)
    for body, future in reversed(waiting):
        future.set_result(Reply(answer(accepted=1, first_seq=1), True, record_id=body.decode()))
    for thread in threads:
        thread.join()
    assert found == {f"r{number}": f"r{number}" for number in range(40)}


def test_a_record_is_read_by_its_id(lake: Served) -> None:
    """With seq and processedAt before the canonical fields."""
    found = lake.get("/records/rec-001")
    assert (found.status_code, found.headers["content-type"]) == (200, "application/json")
    assert_golden("records/rec-001.json", found.content)


@pytest.mark.parametrize("name", IDS)
def test_any_id_can_be_asked_for_in_the_query(lake: Served, name: str) -> None:
    """Also those that are no path."""
    assert lake.get("/records", params={"recordId": name}).json()["recordId"] == name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/records/a%2Fb", "a/b"),
        ("/records/a/b", "a/b"),
        ("/records/a%2F%2Fb", "a//b"),
        ("/records/a//b", "a//b"),
        ("/records/a%2F", "a/"),
        ("/records/%3F", "?"),
        ("/records/%2F", "/"),
        ("/records//", "/"),
        ("/records/%2F%2F", "//"),
        ("/records/%61ggregations", "aggregations"),
        ("/records/aggregations%2F", "aggregations/"),
        (f"/records/{'%F0%9F%98%80' * 256}", "😀" * 256),
        ("/records/%20", " "),
        ("/records/%C3%B6%20%22x%22%20%F0%9F%98%80%252F", 'ö "x" 😀%2F'),
    ],
)
def test_an_id_in_a_path_is_taken_as_it_was_sent(lake: Served, path: str, name: str) -> None:
    """Slashes and escapes are the id's own: no other record is answered in its place."""
    request = f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode()
    _, _, body = lake.raw(request).partition(b"\r\n\r\n")
    assert msgspec.json.decode(body).get("recordId") == name
    assert b'"seq":' in body


@pytest.mark.parametrize(
    ("name", "status", "path"),
    [
        ("not_found", 404, "/records/nobody"),
        ("no_such_path", 404, "/nowhere"),
        ("parameter_record_id_missing", 400, "/records"),
        ("parameter_record_id_twice", 400, "/records?recordId=a&recordId=b"),
        ("parameter_on_a_record", 400, "/records/rec-001?x=1"),
        ("path_no_utf8", 400, "/records/%FF"),
        ("parameter_on_health", 400, "/health?x=1"),
    ],
)
def test_what_is_not_there_is_a_problem(lake: Served, name: str, status: int, path: str) -> None:
    """With the same shape as every other."""
    found = lake.get(path)
    assert (found.status_code, found.headers["content-type"]) == (status, "application/problem+json")
    assert_golden(f"problems/{name}.json", found.content)


def test_a_method_that_there_is_not_is_a_problem(lake: Served) -> None:
    """405, with those that there are."""
    found = lake.client.delete("/records")
    assert (found.status_code, found.json()["code"]) == (405, "method_not_allowed")
    assert "GET" in found.headers["allow"]
    assert "POST" in found.headers["allow"]


@pytest.mark.parametrize("given", ["", "x" * 200, "tab\tin it"])
def test_every_answer_has_a_request_id(lake: Served, given: str) -> None:
    """Also those of the framework itself; an id that cannot be used is replaced."""
    for path in ("/health", "/nowhere", "/records/nobody", "/records/aggregations?include=totals"):
        found = lake.get(path, headers={"x-request-id": given} if given else {})
        assert re.fullmatch(r"[0-9a-f]{12}-[1-9][0-9]*", found.headers["x-request-id"])
    assert lake.get("/nowhere", headers={"x-request-id": "abc"}).headers.get_list("x-request-id") == ["abc"]


def test_health_is_ok_while_all_components_are(lake: Served) -> None:
    """And 503 with what is wrong as soon as one is not."""
    found = lake.get("/health")
    assert (found.status_code, found.text) == (200, '{"status":"ok","components":{"store":{"status":"ok","seq":1}}}')
    lake.reader.components = {"store": {"status": "ok"}, "inbox": {"status": "stopped"}}
    failing = lake.get("/health")
    assert (failing.status_code, failing.json()["components"]["inbox"]["status"]) == (503, "stopped")


def test_the_schema_describes_the_api_and_needs_no_other_host(lake: Served) -> None:
    """Every path of the document answers, and the page loads nothing."""
    document = lake.get("/schema/openapi.json").json()
    assert document["openapi"].startswith("3.")
    for path, operations in document["paths"].items():
        for method in operations:
            found = lake.client.request(method, path.replace("{recordId}", "rec-001"), headers={"content-type": "x"})
            is_missing = found.status_code == 404 and "dead letter" not in found.text
            assert not is_missing and found.status_code not in (405, 500), (method, path)
    page = lake.get("/schema")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "//" not in page.text.replace("<!doctype", "")
    for path in document["paths"]:
        assert path in page.text
