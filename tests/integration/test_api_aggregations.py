"""`GET /records/aggregations` over real Parquet files and hot rows, to the byte."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from api import answers, records
from store.snapshot import Snapshot
from tests.support.app import Served, served
from tests.support.golden import assert_golden
from tests.support.snapshots import DAY_US, START_US, record, snapshot_of

ROWS = [
    record(recordId="rec-001"),
    record(recordId="rec-002", type="negative", value=Decimal(5), time=START_US + 1),
    record(recordId="rec-003", destinationId='ö "quoted" \\ 😀', unit="kg", value=Decimal("0.000000001")),
    record(recordId="rec-004", destinationId='ö "quoted" \\ 😀', time=START_US - DAY_US, value=Decimal(100)),
    record(recordId="rec/005", destinationId="Zeta", type="negative", value=Decimal("99999999999999999999.999999999")),
    record(recordId="rec-006", sourceId="source-b", reference="invoice-10", time=START_US + DAY_US, value=Decimal(0)),
]
PATH = "/records/aggregations"


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("lake")
    with served(root, snapshot_of(root, ROWS, flushed=4, overlap=1)) as found:
        yield found


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("records", ""),
        ("totals", "?include=totals"),
        ("as_of", "?asOf=3"),
        ("as_of_nothing", "?asOf=0"),
        ("nothing_matches", "?destinationId=nowhere"),
        ("two_destinations", "?destinationId=Zeta&destinationId=dest-123&include=records"),
        ("time_range", "?startTime=2024-03-01T13:00:00%2B01:00&endTime=2024-03-02T12:00:00Z"),
        ("negatives", "?type=negative"),
        ("source_reference_unit", "?sourceId=source-b&reference=invoice-10&unit=SEK"),
        ("first_page", "?limit=2"),
    ],
)
def test_an_answer_is_this_to_the_byte(lake: Served, name: str, query: str) -> None:
    """Compact JSON, groups by code point, decimals as strings, and nothing else in between."""
    answer = lake.get(PATH + query)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    json.loads(answer.content)
    assert_golden(f"aggregations/{name}.json", answer.content)


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 6, 7])
def test_pages_put_together_are_the_whole_answer(lake: Served, limit: int) -> None:
    """Every record once and in order, each page with the totals of its whole groups and of everything."""
    whole = lake.get(PATH).json()
    records_of = {group["destinationId"]: group["records"] for group in whole["groups"]}
    totals_of = {group["destinationId"]: group["totals"] for group in whole["groups"]}
    found: dict[str, list[Any]] = {}
    cursor, pages = None, 0
    while cursor is not None or pages == 0:
        page = lake.get(PATH, params={"limit": limit, **({"cursor": cursor} if cursor else {})}).json()
        assert page["totals"] == whole["totals"]
        assert page["asOf"] == 6
        assert 0 < sum(len(group["records"]) for group in page["groups"]) <= limit
        for group in page["groups"]:
            assert group["totals"] == totals_of[group["destinationId"]]
            found.setdefault(group["destinationId"], []).extend(group["records"])
        cursor, pages = page["nextCursor"], pages + 1
    assert found == records_of
    assert list(found) == list(records_of)
    assert pages == -(-len(ROWS) // limit)


def test_pages_of_one_walk_see_the_same_records(tmp_path: Path) -> None:
    """What is committed between two pages is not on the second one."""
    rows = [record(recordId=f"r{number}") for number in range(4)]
    with served(tmp_path, snapshot_of(tmp_path, rows[:3], 0)) as lake:
        first = lake.get(f"{PATH}?limit=2").json()
        lake.reader.current = snapshot_of(tmp_path, rows, 0)
        second = lake.get(PATH, params={"limit": 2, "cursor": first["nextCursor"]}).json()
        assert [r["recordId"] for r in second["groups"][0]["records"]] == ["r2"]
        assert (second["asOf"], second["groups"][0]["count"], second["nextCursor"]) == (3, 3, None)


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("unknown", "?destinationID=x"),
        ("unknown_far_off", "?zzz=1"),
        ("time_without_offset", "?startTime=2024-03-01T12:00:00"),
        ("time_with_a_bare_plus", "?startTime=2024-03-01T12:00:00+02:00"),
        ("type", "?type=both"),
        ("include", "?include=Records"),
        ("as_of_malformed", "?asOf=-1"),
        ("as_of_beyond", "?asOf=7"),
        ("repeated", "?type=positive&type=positive"),
        ("limit_zero", "?limit=0"),
        ("cursor", "?limit=1&cursor=abc"),
        ("bad_utf8", "?destinationId=%FF"),
        ("no_value", "?destinationId"),
    ],
)
def test_a_parameter_that_is_wrong_is_named(lake: Served, name: str, query: str) -> None:
    """400 `invalid_parameter`, with what to write instead."""
    answer = lake.get(PATH + query)
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert_golden(f"problems/parameter_{name}.json", answer.content)


@pytest.mark.parametrize(
    ("query", "is_whole"),
    [
        ("?startTime=0000-01-01T00:00:00Z&endTime=2201-01-01T00:00:00Z", True),
        ("?startTime=1969-12-31T23:59:59Z&endTime=9999-12-31T23:59:59-23:59", True),
        ("?endTime=1969-12-31T23:59:59Z", False),
        ("?startTime=2201-01-01T00:00:00Z", False),
    ],
)
def test_a_time_that_no_record_can_have_bounds_as_any_other(lake: Served, query: str, is_whole: bool) -> None:
    """For the end of all days, and to reach the last instant of 2200: `endTime` is exclusive."""
    for include in ("records", "totals"):
        found = lake.get(f"{PATH}{query}&include={include}").json()
        everything = lake.get(f"{PATH}?include={include}").json()
        assert found == (everything if is_whole else {**everything, "groups": [], "totals": []})


def test_a_cursor_belongs_to_its_filters(lake: Served) -> None:
    """With others it is refused, not answered with a page of something else."""
    cursor = lake.get(f"{PATH}?limit=1").json()["nextCursor"]
    refused = lake.get(PATH, params={"limit": 1, "cursor": cursor, "type": "positive"})
    assert (refused.status_code, refused.json()["parameter"]) == (400, "cursor")
    assert lake.get(PATH, params={"limit": 1, "cursor": cursor, "asOf": 6}).status_code == 200
    assert lake.get(PATH, params={"limit": 1, "cursor": cursor, "asOf": 5}).status_code == 400


@pytest.mark.parametrize("accept", ["*/*", "application/*", "text/html, application/json;q=0.1", ""])
def test_json_goes_to_whoever_takes_it(lake: Served, accept: str) -> None:
    """By name or by range."""
    answer = lake.get(f"{PATH}?include=totals", headers={"accept": accept})
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("accept", ["image/png", "application/json;q=0, image/*", "*/*;q=0"])
def test_a_format_that_there_is_not_is_refused(lake: Served, accept: str) -> None:
    """406, with those that there are."""
    answer = lake.get(PATH, headers={"accept": accept})
    assert (answer.status_code, answer.json()["code"]) == (406, "not_acceptable")
    assert "application/json" in answer.json()["available"]


@pytest.fixture
def long_lake(tmp_path: Path) -> Iterator[Served]:
    """Enough records for an answer of many sections."""
    rows = [record(recordId=f"r{number}", destinationId=f"d{number % 10}") for number in range(60_000)]
    with served(tmp_path, snapshot_of(tmp_path, rows, 0), concurrent_queries=1, open_answers=3) as found:
        yield found


def test_a_long_answer_comes_whole(long_lake: Served) -> None:
    """Sections and batches leave no seams."""
    answer = long_lake.get(PATH).json()
    assert [len(group["records"]) for group in answer["groups"]] == [6_000] * 10
    for group in answer["groups"]:
        assert group["count"] == 6_000
        assert [found["seq"] for found in group["records"]] == sorted(found["seq"] for found in group["records"])
    assert answer["totals"][0]["count"] == 60_000


def test_an_answer_that_fails_on_the_way_is_cut_off(long_lake: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection ends without the last chunk, and the next question is answered."""
    render, calls = answers.render_objects, [0]

    def broken(rows: Any, *after: str) -> Any:
        calls[0] += 1
        if calls[0] == 9:
            raise OSError("the disk is gone")
        return render(rows, *after)

    monkeypatch.setattr(answers, "render_objects", broken)
    found = long_lake.raw(f"GET {PATH} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    assert found.startswith(b"HTTP/1.1 200 OK")
    assert len(found) > 1_000_000
    assert not found.endswith(b"0\r\n\r\n")
    monkeypatch.undo()
    assert long_lake.get(f"{PATH}?include=totals").status_code == 200


def test_a_question_that_fails_before_its_first_byte_is_a_problem(
    lake: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500, and nothing of what went wrong but in the log."""

    def broken(*_: Any) -> Iterator[bytes]:
        raise OSError("secret path")
        yield b""

    monkeypatch.setattr(records, "json_answer", broken)
    answer = lake.get(PATH)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_client_that_goes_away_ends_its_query(long_lake: Served) -> None:
    """In the middle of the answer: its snapshot is given back, and others are answered meanwhile and afterwards."""
    slow = [socket.create_connection(("127.0.0.1", long_lake.port)) for _ in range(2)]
    for connection in slow:
        connection.sendall(f"GET {PATH} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
    assert long_lake.reader.open_snapshots == 2
    assert long_lake.get(f"{PATH}?include=totals").status_code == 200  # slow readers hold no thread
    for connection in slow:
        connection.close()
    wait_until(lambda: long_lake.reader.open_snapshots == 0)
    assert len(long_lake.get(PATH).content) > 1_000_000


def test_a_client_that_goes_away_before_the_first_byte_ends_its_query(long_lake: Served) -> None:
    """It is noticed while the query still runs."""
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        leave.wait(20)

    long_lake.reader.on_snapshot = hold
    connection = socket.create_connection(("127.0.0.1", long_lake.port))
    connection.sendall(f"GET {PATH} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    assert entered.wait(20)
    connection.close()
    time.sleep(0.1)
    long_lake.reader.on_snapshot = lambda: None
    leave.set()
    wait_until(lambda: long_lake.reader.open_snapshots == 0)
    assert long_lake.get(f"{PATH}?include=totals").status_code == 200


def test_more_open_answers_than_there_may_be_are_put_off(long_lake: Served) -> None:
    """503 with Retry-After; those that are open go on."""
    request = f"GET {PATH} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
    slow = [socket.create_connection(("127.0.0.1", long_lake.port)) for _ in range(3)]
    for connection in slow:
        connection.sendall(request)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
    refused = long_lake.get(PATH)
    assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (
        503,
        "too_many_answers",
        "1",
    )
    for connection in slow:
        connection.close()
    wait_until(lambda: long_lake.reader.open_snapshots == 0)
    assert long_lake.get(f"{PATH}?include=totals").status_code == 200


def test_questions_beside_each_other_are_all_answered(lake: Served) -> None:
    """More of them than threads."""
    whole = lake.get(PATH).content
    found: list[bytes] = []

    def ask() -> None:
        found.append(httpx.get(f"http://127.0.0.1:{lake.port}{PATH}", timeout=30).content)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [whole] * 12


def test_an_empty_store_answers(tmp_path: Path) -> None:
    """With no groups, as of 0."""
    with served(tmp_path, Snapshot(0, 0, (), ())) as lake:
        assert lake.get(PATH).text == '{"asOf":0,"groups":[],"totals":[],"nextCursor":null}'
