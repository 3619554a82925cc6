"""`GET /records/aggregations` as NDJSON, CSV, Arrow and Parquet: the rows and digits of the JSON answer."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from api import rows as rows_module
from store.snapshot import Snapshot
from tests.integration.test_api_aggregations import wait_until
from tests.support.app import Served, served
from tests.support.forms import FORMS, rows_in, rows_of_json
from tests.support.golden import assert_golden
from tests.support.model import FIELDS, Model
from tests.support.snapshots import DAY_US, START_US, record, snapshot_of

PATH = "/records/aggregations"
NAMES = ["Zeta", "dest-123", 'ö "quoted", \\ 😀', "a,b", " leading", "\u2028", "=1+1", "null"]
ROWS = [
    record(
        recordId=f"r/{number}",
        time=START_US + (number * 7 % 5) * DAY_US + number % 3,
        sourceId=f"source-{number % 2}",
        destinationId=NAMES[number % len(NAMES)],
        type=("positive", "negative")[number % 3 == 0],
        value=[
            Decimal("99999999999999999999.999999999"),
            Decimal("0.000000001"),
            Decimal(0),
            Decimal(100),
            Decimal("-12.5"),
        ][number % 5],
        unit=("SEK", "kg,m", '"')[number % 3],
        reference=f"ref-{number % 4}",
    )
    for number in range(40)
]
MODEL = Model()
MODEL.take([tuple(row[name] for name in FIELDS) for row in ROWS])  # type: ignore[misc]

FILTERS: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    ("destinationId=dest-123&destinationId=%C3%B6%20%22quoted%22,%20%5C%20%F0%9F%98%80",
     {"destinationId": ["dest-123", NAMES[2]]}),
    ("startTime=2024-03-02T12:00:00Z&endTime=2024-03-04T13:00:00%2B01:00",
     {"start": START_US + DAY_US, "end": START_US + 3 * DAY_US}),
    ("type=negative&sourceId=source-0", {"type": "negative", "sourceId": ["source-0"]}),
    ("reference=ref-1&reference=ref-2&unit=%22", {"reference": ["ref-1", "ref-2"], "unit": ['"']}),
    ("asOf=17", {"as_of": 17}),
    ("destinationId=nowhere", {"destinationId": ["nowhere"]}),
    ("asOf=0", {"as_of": 0}),
]  # fmt: skip


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("lake")
    with served(root, snapshot_of(root, ROWS, flushed=25, overlap=2, rolled_up=(20,))) as found:
        yield found


def ask(lake: Served, form: str, query: str) -> httpx.Response:
    return lake.get(f"{PATH}?{query}", headers={"accept": FORMS[form]})


@pytest.mark.parametrize("include", ["records", "totals"])
@pytest.mark.parametrize(("query", "filters"), FILTERS, ids=[query[:20] or "all" for query, _ in FILTERS])
@pytest.mark.parametrize("form", FORMS)
def test_every_format_has_the_rows_of_the_model(
    lake: Served, form: str, query: str, filters: dict[str, Any], include: str
) -> None:
    """The same rows in the same order with the same digits as the JSON answer and as the model."""
    query = f"{query}&include={include}".lstrip("&")
    answer = ask(lake, form, query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].partition(";")[0] == FORMS[form]
    assert answer.headers["vary"] == "Accept"
    assert "link" not in answer.headers
    as_json = lake.get(f"{PATH}?{query}")
    expected = MODEL.aggregate(**filters)
    rows = rows_in(form, answer.content, include)
    assert rows == rows_of_json(as_json.json(), include) == rows_of_json(expected, include)
    assert answer.headers["oncelake-as-of"] == as_json.headers["oncelake-as-of"] == str(expected["asOf"])


@pytest.mark.parametrize("form", FORMS)
def test_totals_of_a_page_are_those_of_the_whole_answer(lake: Served, form: str) -> None:
    """`limit` is for records."""
    answer = ask(lake, form, "include=totals&limit=1")
    assert answer.content == ask(lake, form, "include=totals").content
    assert "link" not in answer.headers


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 6, 7])
@pytest.mark.parametrize("form", FORMS)
def test_a_walk_by_links_sees_every_record_once(lake: Served, form: str, limit: int) -> None:
    """The link of each page leads to the next one with the same question, to the last, which has none."""
    query = f"?limit={limit}&type=positive&destinationId=Zeta&destinationId=a%2Cb&unit=SEK&unit=kg%2Cm&unit=%22"
    expected = rows_of_json(lake.get(f"{PATH}?{query[1:].partition('&')[2]}").json(), "records")
    found: list[dict[str, Any]] = []
    url: str | None = PATH + query
    pages = 0
    while url is not None:
        answer = lake.get(url, headers={"accept": FORMS[form]})
        rows = rows_in(form, answer.content, "records")
        assert 0 < len(rows) <= limit
        found += rows
        pages += 1
        url = answer.links["next"]["url"] if answer.links else None
    assert found == expected
    assert pages == -(-len(expected) // limit)


def test_links_and_cursors_are_the_same_in_every_format(lake: Served) -> None:
    """A walk may change its format on the way."""
    page = lake.get(f"{PATH}?limit=3")
    cursors = {page.json()["nextCursor"], httpx.URL(page.links["next"]["url"]).params["cursor"]}
    for form in FORMS:
        cursors.add(httpx.URL(ask(lake, form, "limit=3").links["next"]["url"]).params["cursor"])
    assert len(cursors) == 1


@pytest.mark.parametrize("form", FORMS)
def test_pages_of_one_walk_see_the_same_records(tmp_path: Path, form: str) -> None:
    """What is committed between two pages is on neither."""
    rows = [record(recordId=f"r{number}") for number in range(5)]
    with served(tmp_path, snapshot_of(tmp_path, rows[:3], 0)) as lake:
        first = ask(lake, form, "limit=2")
        lake.reader.current = snapshot_of(tmp_path, rows, 0)
        second = lake.get(first.links["next"]["url"], headers={"accept": FORMS[form]})
        assert [row["recordId"] for row in rows_in(form, second.content, "records")] == ["r2"]
        assert (second.headers["oncelake-as-of"], dict(second.links)) == ("3", {})


@pytest.mark.parametrize("include", ["records", "totals"])
@pytest.mark.parametrize("form", ["ndjson", "csv"])
def test_the_bytes_are_these(lake: Served, form: str, include: str) -> None:
    """Golden: others read them."""
    assert_golden(f"aggregations/{include}.{form}", ask(lake, form, f"include={include}&asOf=16").content)


@pytest.mark.parametrize("include", ["records", "totals"])
def test_an_empty_answer_has_columns_and_no_rows(tmp_path: Path, include: str) -> None:
    """The header of CSV, the schema of Arrow and Parquet, and nothing at all in NDJSON."""
    with served(tmp_path, Snapshot(0, 0, (), ())) as lake:
        for form in FORMS:
            answer = ask(lake, form, f"include={include}")
            assert (answer.status_code, answer.headers["oncelake-as-of"]) == (200, "0")
            assert rows_in(form, answer.content, include) == []


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("text/csv", "text/csv"),
        ("text/*", "text/csv"),
        ("application/jsonl", "application/jsonl"),
        ("application/ndjson, */*;q=0.1", "application/ndjson"),
        ("application/*", "application/json"),
        ("*/*", "application/json"),
        ("application/json;q=0.5, TEXT/CSV; q=0.7", "text/csv"),
        ("application/json;q=0.5, text/csv;q=0.500", "application/json"),
        ("*/*;q=0.3, application/json;q=0", "application/x-ndjson"),
        ("application/vnd.apache.parquet;q=nan, text/csv;q=0.1", "text/csv"),
        ("application/vnd.apache.parquet;q=9, text/csv;q=0.1", "text/csv"),
    ],
)
def test_the_client_gets_what_it_wants_most(lake: Served, accept: str, expected: str) -> None:
    """Weights, ranges and the order of the service where it does not matter to the client."""
    answer = lake.get(f"{PATH}?include=totals", headers={"accept": accept})
    assert answer.headers["content-type"].partition(";")[0] == expected


def test_several_accept_headers_are_one(lake: Served) -> None:
    """As RFC 9110 has it for every list."""
    headers = [("accept", "image/png"), ("accept", "text/csv")]
    assert lake.get(f"{PATH}?include=totals", headers=headers).headers["content-type"].startswith("text/csv")
    refused = lake.get(PATH, headers={"accept": "application/vnd.apache.arrow.file"})
    assert (refused.status_code, refused.headers["vary"]) == (406, "Accept")
    assert "application/vnd.apache.arrow.stream" in refused.json()["available"]


@pytest.fixture(scope="module")
def long_lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Enough records for an answer of many sections, in batches that do not end where groups do; also compressed."""
    root = tmp_path_factory.mktemp("long")
    noise = random.Random(7)  # noqa: S311
    rows = [
        record(recordId=f"{number}{noise.randbytes(100).hex()}", destinationId=f"d{number % 7}", time=START_US + number)
        for number in range(70_001)
    ]
    with served(root, snapshot_of(root, rows, 0), concurrent_queries=2, open_answers=4) as found:
        yield found


@pytest.mark.parametrize("form", FORMS)
def test_a_long_answer_comes_whole(long_lake: Served, form: str) -> None:
    """Batches, row groups and sections leave no seams."""
    body = ask(long_lake, form, "").content
    rows = rows_in(form, body, "records")
    assert [row["seq"] for row in rows] == [seq for start in range(7) for seq in range(start + 1, 70_002, 7)]
    if form == "parquet":
        assert pq.ParquetFile(pa.BufferReader(body)).metadata.num_row_groups > 1


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_that_fails_on_the_way_is_cut_off(
    long_lake: Served, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """No last chunk, no end of an Arrow stream, no footer of Parquet; and the next question is answered."""
    original = rows_module.records

    @contextlib.contextmanager
    def broken(*arguments: Any) -> Iterator[Any]:
        def some(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            yield from itertools.islice(batches, 33)
            raise OSError("the disk is gone")

        with original(*arguments) as page:
            yield page._replace(batches=some(page.batches))

    monkeypatch.setattr(rows_module, "records", broken)
    request = f"GET {PATH} HTTP/1.1\r\nhost: x\r\naccept: {FORMS[form]}\r\n\r\n"
    found = long_lake.raw(request.encode())
    assert found.startswith(b"HTTP/1.1 200 OK")
    assert not found.endswith(b"0\r\n\r\n")
    assert not found.rstrip(b"\r\n").endswith((b"PAR1", b"\xff\xff\xff\xff\x00\x00\x00\x00"))
    monkeypatch.undo()
    assert ask(long_lake, form, "limit=1").status_code == 200


@pytest.mark.parametrize("form", ["json", *FORMS])
def test_a_client_that_goes_away_ends_its_query(long_lake: Served, form: str) -> None:
    """In the middle of the answer, in every format: its snapshot is given back."""
    accept = FORMS.get(form, "application/json")
    with socket.create_connection(("127.0.0.1", long_lake.port)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.sendall(f"GET {PATH} HTTP/1.1\r\nhost: x\r\naccept: {accept}\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
        time.sleep(0.3)  # enough for an answer that waits for nobody
        assert long_lake.reader.open_snapshots == 1
    wait_until(lambda: long_lake.reader.open_snapshots == 0)
    assert ask(long_lake, "csv", "include=totals").status_code == 200


def test_more_questions_than_may_wait_are_put_off(tmp_path: Path) -> None:
    """One runs and one waits: the third gets 503 with a code of its own, and the two are answered."""
    with served(tmp_path, snapshot_of(tmp_path, ROWS[:3], 0), concurrent_queries=1, waiting_queries=1) as lake:
        entered, leave = threading.Event(), threading.Event()

        def hold() -> None:
            entered.set()
            leave.wait(20)

        lake.reader.on_snapshot = hold
        found: list[httpx.Response] = []
        url = f"http://127.0.0.1:{lake.port}{PATH}"
        threads = [threading.Thread(target=lambda: found.append(httpx.get(url, timeout=30))) for _ in range(3)]
        threads[0].start()
        assert entered.wait(20)
        for thread in threads[1:]:
            thread.start()
        wait_until(lambda: found)
        (refused,) = found
        assert (refused.status_code, refused.json()["code"]) == (503, "too_many_queries")
        assert refused.headers["retry-after"] == "1"
        leave.set()
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in found] == [503, 200, 200]
        assert httpx.get(url).status_code == 200


@pytest.mark.parametrize(("include", "most"), [("records", 24), ("totals", 23)])
def test_an_answer_of_too_many_rows_is_refused(tmp_path: Path, include: str, most: int) -> None:
    """422 before the first byte; what fits exactly is answered."""
    with served(tmp_path, snapshot_of(tmp_path, ROWS, 20), max_answer_rows=most) as lake:
        for accept in ("application/json", *FORMS.values()):
            headers = {"accept": accept}
            assert lake.get(PATH, params={"include": include, "asOf": most}, headers=headers).status_code == 200
            refused = lake.get(PATH, params={"include": include}, headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (422, "answer_too_large")
            assert "api.max_answer_rows" in refused.json()["detail"]


def test_pages_have_no_more_rows_than_an_answer_may(tmp_path: Path) -> None:
    """So a large answer can be had in pages."""
    with served(tmp_path, snapshot_of(tmp_path, ROWS, 20), max_answer_rows=24) as lake:
        assert lake.get(f"{PATH}?limit=24").status_code == 200
        assert lake.get(f"{PATH}?limit=25").json()["code"] == "answer_too_large"
        assert lake.get(f"{PATH}?include=totals&limit=1").status_code == 200
