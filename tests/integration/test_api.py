"""The HTTP face over a whole lake: what goes in by POST comes out by GET, and every status is one that really happens.

The bytes of single answers are pinned beside fakes in `test_api_records` and `test_api_aggregations`.
"""

from __future__ import annotations

import errno
import gzip
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from litestar.testing import TestClient

from api.app import create_app
from api.ports import ApiSettings
from api.schema import DOCUMENT
from service.config import Config, Ingest, StoreConfig
from service.runtime import Lake, Reader
from store import files
from store.engine import Engine
from store.outcomes import Reply
from tests.support.batches import COMPRESSIONS, MEDIA_TYPES, encoded, of_canonical
from tests.support.model import Canonical, Model

PATH = "/records/aggregations"
BODY_LIMIT = 64 << 10
START_US = 1_709_294_400_000_000
RECORD = {
    "recordId": "rec-001",
    "time": "2024-03-01T12:00:00.000000Z",
    "sourceId": "source-a",
    "destinationId": "dest-123",
    "type": "positive",
    "value": "125.5",
    "unit": "SEK",
    "reference": "invoice-9",
}


@dataclass
class Face:
    """A lake and its application."""

    lake: Lake
    client: TestClient[Any]

    def post(self, content: Any, media_type: str = "application/json", **parameters: str) -> httpx.Response:
        data = content if isinstance(content, bytes) else json.dumps(content, ensure_ascii=False).encode()
        return self.client.post("/records", content=data, headers={"content-type": media_type}, params=parameters)

    def get(self, path: str, **parameters: Any) -> httpx.Response:
        return self.client.get(path, params=parameters or None)

    def count(self) -> int:
        """Of the records that are stored."""
        return sum(total["count"] for total in self.get(PATH, include="totals").json()["totals"])

    def letters(self) -> list[dict[str, Any]]:
        """All dead letters."""
        paths = sorted((self.lake.store.root / "rejected").glob("*.jsonl"))
        return [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]


def face(root: Path) -> Iterator[Face]:
    config = Config(
        store=StoreConfig(data_dir=str(root), fsync=False, flush_interval_s=3_600.0),
        ingest=Ingest(queue_batches=2, atomic_records=50, max_decompressed_bytes=1 << 20),
    )
    lake = Lake(config)
    temp = root / "internal" / "tmp"
    lake.store.disk.make_directory(temp)
    engine = Engine(root, temp, memory="64MB")
    app = create_app(lake.intake, Reader(lake, engine), ApiSettings(max_body_bytes=BODY_LIMIT))
    lake.start()
    try:
        with TestClient(app) as client:
            yield Face(lake, client)
    finally:
        lake.stop()
        engine.close()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Face]:
    """A service without records."""
    yield from face(tmp_path / "data")


def is_problem(found: httpx.Response, status: int, code: str) -> bool:
    body = found.json()
    assert found.headers["content-type"] == "application/problem+json"
    assert (found.status_code, body["status"], body["code"]) == (status, status, code), found.text
    return bool(body["type"] and body["title"] and body["detail"])


def test_options_name_every_method(fresh: Face) -> None:
    """Of a path with two handlers too."""
    for path, methods in (("/records", "GET, HEAD, OPTIONS, POST"), ("/health", "GET, HEAD, OPTIONS")):
        assert fresh.client.options(path).headers["allow"] == methods
        assert fresh.client.patch(path).headers["allow"] == methods
    assert fresh.client.options("/rejected/1/resubmit").headers["allow"] == "OPTIONS, POST"


def test_head_is_get_without_its_body(asked: tuple[Face, Model]) -> None:
    """The same status and headers, of problems too; answers that are streamed, or wait, end at once."""
    client = asked[0].client
    events = {"accept": "text/event-stream"}
    for path in ("/health", "/records/r1", "/records", "/schema", "/rejected", "/records/none", "/nothing"):
        head, whole = client.head(path), client.get(path)
        assert head.status_code == whole.status_code and head.content == b"", path
        assert head.headers["content-type"] == whole.headers["content-type"]
        assert head.headers["content-length"] == whole.headers["content-length"]
    assert "oncelake-as-of" in client.head(PATH).headers
    assert client.head(f"{PATH}?limit=1").headers["link"] == client.get(f"{PATH}?limit=1").headers["link"]
    assert client.head("/feeds/notifications", headers=events).status_code == 200
    assert client.head("/rejected/1/resubmit").status_code == 405


# -- taking records


def test_one_record_is_created_known_refused_and_found_different(fresh: Face) -> None:
    """201, 200, 422, 409; the refused one has not consumed its id, and both failures left a dead letter."""
    assert fresh.post({**RECORD, "value": "-1"}).status_code == 422
    first = fresh.post(RECORD)
    assert (first.status_code, first.text) == (201, '{"recordId":"rec-001","status":"accepted","seq":1}')
    again = fresh.post({**RECORD, "value": 125.50, "time": "2024-03-01T14:00:00+02:00"})
    assert (again.status_code, again.text) == (200, '{"recordId":"rec-001","status":"duplicate","seq":1}')
    other = fresh.post({**RECORD, "value": "1", "unit": "EUR"})
    assert is_problem(other, 409, "conflict")
    assert {name: other.json()[name] for name in ("recordId", "seq", "fields")} == {
        "recordId": "rec-001",
        "seq": 1,
        "fields": ["value", "unit"],
    }
    refused = fresh.post({**RECORD, "recordId": "rec-002", "type": "both", "value": "0.0000000001"})
    assert is_problem(refused, 422, "invalid_record")
    assert [error["field"] for error in refused.json()["errors"]] == ["type", "value"]
    assert fresh.count() == 1
    assert [letter["status"] for letter in fresh.letters()] == ["rejected", "conflict", "rejected"]


def test_a_batch_is_taken_in_part(fresh: Face) -> None:
    """The first of an id wins, indexes count from 0, and the problems say which and why."""
    batch = [
        RECORD, {**RECORD, "recordId": "rec-002"}, RECORD, {**RECORD, "value": "7"},
        {**RECORD, "recordId": "rec-003", "value": "0.0000000001"},
    ]  # fmt: skip
    found = fresh.post(batch)
    body = found.json()
    assert found.status_code == 200
    counts = ("received", "accepted", "duplicate", "conflict", "rejected", "firstSeq", "lastSeq", "problemsTruncated")
    assert [body[name] for name in counts] == [5, 2, 1, 1, 1, 1, 2, False]
    assert body["problems"][0] == {
        "index": 3,
        "recordId": "rec-001",
        "status": "conflict",
        "seq": 1,
        "fields": ["value"],
    }
    assert (body["problems"][1]["index"], body["problems"][1]["recordId"]) == (4, "rec-003")
    assert body["problems"][1]["errors"][0]["code"] == "value_scale"


def test_at_most_a_thousand_problems_are_listed_and_all_are_counted(fresh: Face) -> None:
    """A batch of twelve hundred broken lines."""
    found = fresh.post(b"{\n" * 1_200, "application/x-ndjson").json()
    assert (found["rejected"], len(found["problems"]), found["problemsTruncated"]) == (1_200, 1_000, True)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("fmt", MEDIA_TYPES)
def test_every_format_is_taken_compressed_or_not(fresh: Face, fmt: str, compression: str | None) -> None:
    """By its media type and Content-Encoding; an empty batch of it is a batch of none."""
    headers = {"content-type": MEDIA_TYPES[fmt], **({"content-encoding": compression} if compression else {})}
    for records, accepted in ([RECORD, {**RECORD, "recordId": "rec-002"}], 2), ([], 0):
        found = fresh.client.post("/records", content=encoded(records, fmt, compression), headers=headers)
        assert (found.status_code, found.json()["accepted"]) == (200, accepted)
    assert fresh.count() == 2


def test_an_atomic_batch_is_stored_whole_or_not_at_all(fresh: Face) -> None:
    """422 with the counts as if in part, no seqs, no dead letters, no ids consumed; also for one record."""
    good = [{**RECORD, "recordId": f"rec-{number}"} for number in range(3)]
    refused = fresh.post([*good, {**RECORD, "recordId": "rec-9", "unit": ""}], atomic="true")
    assert is_problem(refused, 422, "atomic_refused")
    names = ("received", "accepted", "rejected", "firstSeq", "lastSeq")
    assert [refused.json()[name] for name in names] == [4, 3, 1, None, None]
    single = fresh.post({**RECORD, "unit": ""}, atomic="true")
    assert is_problem(single, 422, "atomic_refused") and single.json()["received"] == 1
    assert (fresh.count(), fresh.letters()) == (0, [])
    taken = fresh.post(good, atomic="true")
    assert (taken.status_code, taken.json()["accepted"], taken.json()["lastSeq"]) == (200, 3, 3)
    assert fresh.post({**RECORD, "recordId": "one"}, atomic="true").status_code == 201
    assert fresh.post({**RECORD, "recordId": "one"}, atomic="true").status_code == 200
    larger = fresh.post([{**RECORD, "recordId": f"x-{number}"} for number in range(51)], atomic="true")
    assert is_problem(larger, 413, "too_large_atomic")
    assert fresh.count() == 4


def test_a_dry_run_stores_nothing(fresh: Face) -> None:
    """200 with the answer of a batch and no seqs, for one record too, whatever would become of it."""
    assert fresh.post(RECORD).status_code == 201
    for content, counts in (
        ({**RECORD, "recordId": "new"}, (1, 0, 0, 0)),
        (RECORD, (0, 1, 0, 0)),
        ({**RECORD, "unit": "EUR"}, (0, 0, 1, 0)),
        ({**RECORD, "unit": ""}, (0, 0, 0, 1)),
        ([RECORD, {**RECORD, "recordId": "new"}, {**RECORD, "recordId": "new", "value": "3"}], (1, 1, 1, 0)),
    ):
        found = fresh.post(content, dryRun="true")
        assert found.status_code == 200
        body = found.json()
        assert tuple(body[name] for name in ("accepted", "duplicate", "conflict", "rejected")) == counts
        assert body["firstSeq"] is None and body["lastSeq"] is None
    assert (fresh.count(), fresh.letters()) == (1, [])
    assert fresh.get("/records/new").status_code == 404


@pytest.mark.parametrize(
    ("status", "code", "body", "headers"),
    [
        (400, "undecodable", b"[{", {"content-type": "application/json"}),
        (400, "undecodable", b"", {"content-type": "application/json"}),
        (400, "undecodable", b"[1, 2]x", {"content-type": "application/json"}),
        (400, "undecodable", b"no parquet", {"content-type": "application/vnd.apache.parquet"}),
        (400, "undecodable", b"no arrow", {"content-type": "application/vnd.apache.arrow.stream"}),
        (400, "undecodable", b"no gzip", {"content-type": "text/csv", "content-encoding": "gzip"}),
        (400, "undecodable", b"no zstd", {"content-type": "text/csv", "content-encoding": "zstd"}),
        (413, "too_large", b" " * (BODY_LIMIT + 1), {"content-type": "application/json"}),
        (415, "unsupported_format", b"<x/>", {"content-type": "application/xml"}),
        (415, "unsupported_format", b"{}", {"content-type": "application/json", "content-encoding": "br"}),
        (415, "unsupported_format", b"{}", {}),
        (422, "invalid_schema", b"recordId,time\nx,y\n", {"content-type": "text/csv"}),
    ],
)
def test_a_body_that_cannot_be_taken_is_refused_whole(
    fresh: Face, status: int, code: str, body: bytes, headers: dict[str, str]
) -> None:
    """With its status and code; nothing is stored, and the next request is answered."""
    found = fresh.client.post("/records", content=body, headers=headers)
    assert is_problem(found, status, code)
    assert len(fresh.letters()) == (code == "invalid_schema")
    assert fresh.post(RECORD).status_code == 201


def test_a_body_without_a_length_is_cut_off_at_the_limit(fresh: Face) -> None:
    """Chunked, piece by piece; one below the limit is taken."""
    pieces = [b" " * 8_192] * 9
    headers = {"content-type": "application/json"}
    assert is_problem(fresh.client.post("/records", content=iter(pieces), headers=headers), 413, "too_large")
    whole = json.dumps(RECORD).encode()
    small = iter([whole[:10], b"", whole[10:]])
    assert fresh.client.post("/records", content=small, headers=headers).status_code == 201


def test_a_body_that_unpacks_to_too_much_is_refused(fresh: Face) -> None:
    """A small one that would fill the memory: 413, and the key that says how much may be."""
    bomb = encoded([], "ndjson", None) + b" " * (4 << 20)
    headers = {"content-type": "application/x-ndjson", "content-encoding": "gzip"}
    found = fresh.client.post("/records", content=gzip.compress(bomb), headers=headers)
    assert is_problem(found, 413, "too_large_decompressed") and "max_decompressed_bytes" in found.json()["detail"]


def test_requests_are_put_off_while_too_much_waits(fresh: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    """429 with Retry-After; what waited before is stored, and then there is room again."""
    commit, entered, leave = fresh.lake.store.commit, threading.Event(), threading.Event()

    def held(what: Any) -> None:
        entered.set()
        assert leave.wait(20)
        commit(what)

    def submitted(number: int) -> Future[Reply]:
        body = json.dumps({**RECORD, "recordId": f"w{number}"}).encode()
        return fresh.lake.intake.submit(
            body, "application/json", None, atomic=False, dry_run=False, request_id=f"w{number}"
        )

    monkeypatch.setattr(fresh.lake.store, "commit", held)
    waiting = [submitted(0)]
    assert entered.wait(20)
    waiting += [submitted(1), submitted(2)]  # the first is being committed, two may wait
    refused = fresh.post(RECORD)
    assert is_problem(refused, 429, "queue_full") and int(refused.headers["retry-after"]) >= 1
    leave.set()
    assert [future.result(20).answer.first_seq for future in waiting] == [1, 2, 3]
    assert fresh.post(RECORD).json()["seq"] == 4


def test_a_service_that_stops_takes_nothing_more_and_still_answers(fresh: Face) -> None:
    """503 for records, also for health; questions are answered to the end."""
    assert fresh.post(RECORD).status_code == 201
    fresh.lake.committer.stop()
    assert is_problem(fresh.post({**RECORD, "recordId": "late"}), 503, "stopping")
    health = fresh.get("/health")
    assert (health.status_code, health.json()["status"]) == (503, "failing")
    assert health.json()["components"]["store"]["status"] != "ok"
    assert fresh.count() == 1


def test_a_full_disk_refuses_and_takes_again_when_there_is_room(fresh: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    """507, nothing stored, no seq used up, and no restart needed."""
    assert fresh.post(RECORD).json()["seq"] == 1

    def full(handle: int, data: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "_write_all", full)
        assert is_problem(fresh.post({**RECORD, "recordId": "rec-002"}), 507, "disk_full")
        assert is_problem(fresh.post([{**RECORD, "recordId": "rec-002"}]), 507, "disk_full")
        assert fresh.get("/records/rec-001").status_code == 200
    assert fresh.post({**RECORD, "recordId": "rec-002"}).json()["seq"] == 2
    assert fresh.get("/health").status_code == 200


# -- questions


def stored() -> list[Canonical]:
    """Thirty records over all that can be filtered by, some with texts that URLs and JSON must escape."""
    return [
        (
            f"r/{number}", START_US + (number * 7 % 10) * 3_600_000_000, f"s{number % 3}",
            ["d/ö", 'd"1', "D&=+ 2"][number % 3], "negative" if number % 4 == 0 else "positive",
            Decimal(number) / 8, ["SEK", "kg"][number % 2], f"i {number % 5}",
        )
        for number in range(30)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Face, Model]]:
    """The thirty records, in Parquet of two flushes and hot."""
    model = Model()
    for found in face(tmp_path_factory.mktemp("asked") / "data"):
        for begin in (0, 10, 20):
            records = stored()[begin : begin + 10]
            assert found.post(encoded(of_canonical(records), "ndjson"), "application/x-ndjson").status_code == 200
            model.take(list(records))
            if begin < 20:
                found.lake.store.flush_once()
        yield found, model


QUESTIONS: list[dict[str, Any]] = [
    {},
    {"startTime": "2024-03-01T14:00:00Z"},
    {"endTime": "2024-03-01T16:00:00.000000+02:00"},
    {"startTime": "2024-03-01T14:00:00Z", "endTime": "2024-03-01t18:00:00z"},
    {"startTime": "2024-03-01T18:00:00Z", "endTime": "2024-03-01T14:00:00Z"},
    {"type": "negative"},
    {"destinationId": ["d/ö"]},
    {"destinationId": ["D&=+ 2", 'd"1', "d/ö", "d/ö"]},
    {"sourceId": ["s1"]},
    {"reference": ["i 1", "i 2"]},
    {"unit": ["kg"], "type": "positive"},
    {"unit": ["kg", "SEK"], "sourceId": ["s0", "s2"], "reference": ["i 0", "i 3"], "startTime": "2024-03-01T13:00:00Z"},
    {"unit": [""]},
    {"destinationId": ["' OR 1=1; --"]},
]


@pytest.mark.parametrize("as_of", [None, 0, 1, 15, 30])
@pytest.mark.parametrize("question", QUESTIONS, ids=str)
def test_a_question_is_answered_as_by_the_model(
    asked: tuple[Face, Model], question: dict[str, Any], as_of: int | None
) -> None:
    """With records and with totals alone, as of then and now."""
    found, model = asked
    limits = {
        "startTime": lambda text: ("start", instant(text)),
        "endTime": lambda text: ("end", instant(text)),
    }
    filters = dict(limits.get(name, lambda value, name=name: (name, value))(value) for name, value in question.items())
    expected = model.aggregate(as_of, **filters)
    parameters = {**question, **({} if as_of is None else {"asOf": as_of})}
    assert found.get(PATH, **parameters).json() == expected
    assert found.get(PATH, include="records", **parameters).json() == expected
    for group in expected["groups"]:
        del group["records"]
    assert found.get(PATH, include="totals", **parameters).json() == expected


def test_an_answer_as_of_any_seq_is_what_was_stored_then(asked: tuple[Face, Model]) -> None:
    """From nothing to now, across the lines between two files and between files and hot rows; beyond is refused."""
    found, model = asked
    for as_of in range(31):
        assert found.get(PATH, asOf=as_of).json() == model.aggregate(as_of)
    assert is_problem(found.get(PATH, asOf=31), 400, "invalid_parameter")


def instant(text: str) -> int:
    return int(datetime.fromisoformat(text.upper().replace("Z", "+00:00")).timestamp()) * 1_000_000


@pytest.mark.parametrize("limit", [1, 2, 7, 29, 30, 1_000_000])
@pytest.mark.parametrize("question", [{}, {"unit": ["kg"], "asOf": 25}], ids=str)
def test_a_walk_over_the_pages_gives_every_record_once(
    asked: tuple[Face, Model], question: dict[str, Any], limit: int
) -> None:
    """In order; every page full but the last, each group with its whole totals, all as of the same seq."""
    found, model = asked
    as_of = question.get("asOf")
    expected = model.aggregate(as_of, **{name: value for name, value in question.items() if name != "asOf"})
    seqs: list[int] = []
    cursor: dict[str, str] = {}
    while True:
        page = found.get(PATH, limit=limit, **question, **cursor).json()
        rows = [row["seq"] for group in page["groups"] for row in group["records"]]
        seqs += rows
        assert page["totals"] == expected["totals"] and page["asOf"] == expected["asOf"]
        whole = {group["destinationId"]: group for group in expected["groups"]}
        for group in page["groups"]:
            assert all(group[name] == whole[group["destinationId"]][name] for name in ("count", "total", "totals"))
        if page["nextCursor"] is None:
            break
        assert len(rows) == limit
        cursor = {"cursor": page["nextCursor"]}
    assert seqs == [row["seq"] for group in expected["groups"] for row in group["records"]]


def test_a_walk_is_not_disturbed_by_commits_and_flushes(fresh: Face) -> None:
    """What is stored between two pages is on none of them."""
    fresh.post([{**RECORD, "recordId": f"r{number}"} for number in range(6)])
    first = fresh.get(PATH, limit=2).json()
    fresh.lake.store.flush_once()
    fresh.post([{**RECORD, "recordId": f"late{number}"} for number in range(6)])
    second = fresh.get(PATH, limit=4, cursor=first["nextCursor"]).json()
    found = [row["seq"] for page in (first, second) for row in page["groups"][0]["records"]]
    assert (found, second["asOf"], second["nextCursor"]) == ([1, 2, 3, 4, 5, 6], 6, None)


def test_a_record_is_found_by_any_way_of_writing_its_id(asked: tuple[Face, Model]) -> None:
    """Hot or in Parquet; with the slash as it is, encoded, or in the query."""
    found, _ = asked
    for number in (0, 15, 29):
        name = f"r/{number}"
        answers = [
            found.get(f"/records/{name}"),
            found.get(f"/records/{quote(name, safe='')}"),
            found.get("/records", recordId=name),
        ]
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers}) == 1
        body = answers[0].json()
        assert list(body) == ["seq", "processedAt", *RECORD]
        assert (body["seq"], body["recordId"]) == (number + 1, name)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", body["processedAt"])


def test_an_id_that_is_not_there_is_not_found(asked: tuple[Face, Model]) -> None:
    """404, in a path and in the query; so is a path that does not exist."""
    found, _ = asked
    assert is_problem(found.get("/records/r%2F30"), 404, "not_found")
    assert is_problem(found.get("/records", recordId="x" * 5_000), 404, "not_found")
    assert is_problem(found.get("/nothing"), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path"), [("DELETE", "/records"), ("PUT", "/records/x"), ("POST", PATH), ("POST", "/health")]
)
def test_another_method_is_not_allowed(asked: tuple[Face, Model], method: str, path: str) -> None:
    """405, with those that are."""
    answer = asked[0].client.request(method, path)
    assert is_problem(answer, 405, "method_not_allowed") and answer.headers["allow"]
    assert method in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "query", "parameter"),
    [
        (PATH, "destination=x", "destination"),
        (PATH, "type=both", "type"),
        (PATH, "startTime=2024-03-01T12:00:00", "startTime"),
        (PATH, "endTime=", "endTime"),
        (PATH, "include=all", "include"),
        (PATH, "asOf=31", "asOf"),
        (PATH, "asOf=-1", "asOf"),
        (PATH, "asOf=1.0", "asOf"),
        (PATH, "asOf=99999999999999999999", "asOf"),
        (PATH, "limit=0", "limit"),
        (PATH, "limit=1&limit=1", "limit"),
        (PATH, "cursor=x", "cursor"),
        ("/records", "", "recordId"),
        ("/records", "recordid=x", "recordid"),
        ("/records/r%2F1", "x=1", "x"),
        ("/health", "verbose=1", "verbose"),
    ],
)
def test_a_wrong_parameter_is_refused_and_named(
    asked: tuple[Face, Model], path: str, query: str, parameter: str
) -> None:
    """400 `invalid_parameter`."""
    answer = asked[0].get(f"{path}?{query}" if query else path)
    assert is_problem(answer, 400, "invalid_parameter") and answer.json()["parameter"] == parameter


HOSTILE = st.binary(max_size=60).map(lambda raw: quote(raw, safe="=&%+;/")) | st.lists(
    st.tuples(
        st.sampled_from(
            ["startTime", "endTime", "type", "destinationId", "unit", "asOf", "limit", "cursor", "include"]
        ),
        st.text(max_size=20)
        | st.integers().map(str)
        | st.sampled_from(["records", "positive", "2024-03-01T12:00:00Z"]),
    ),
    max_size=4,
).map(lambda pairs: "&".join(f"{name}={quote(value, safe='', errors='surrogatepass')}" for name, value in pairs))


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(HOSTILE)
def test_no_query_string_makes_the_service_fail(asked: tuple[Face, Model], query: str) -> None:
    """Whatever it holds, the answer is one, or says what is wrong."""
    for path in (PATH, "/records", "/records/x", "/health"):
        answer = asked[0].client.get(f"{path}?{query}")
        assert answer.status_code in (200, 400, 404), (path, query, answer.text)
    assert asked[0].client.post(f"/records?{query}", content=b"[]", headers={"content-type": "x/y"}).status_code in (
        400,
        415,
    )


@pytest.mark.parametrize(
    "query",
    [
        "%FF",
        "destinationId=%FF%FE",
        "destinationId=%C0%80",
        "destinationId=%ED%A0%80",
        "destinationId=%00",
        "&&&",
        "=",
        "a" * 20_000,
    ]
    + ["&".join([parameter] * 10_000) for parameter in ("unit", "unit=", "x=1")],
    ids=lambda query: query[:24],
)
def test_a_hostile_query_string_is_answered(asked: tuple[Face, Model], query: str) -> None:
    """Bytes that are no UTF-8, ten thousand parameters: 400, or no records."""
    answer = asked[0].client.get(f"{PATH}?{query}")
    assert answer.status_code in (200, 400)
    assert answer.status_code == 400 or answer.json()["groups"] == []


# -- the service about itself


def test_health_tells_how_far_the_store_is(asked: tuple[Face, Model]) -> None:
    """200, with the state of each component."""
    answer = asked[0].get("/health")
    assert answer.status_code == 200
    body = answer.json()
    assert body["status"] == "ok" and body["components"].keys() == {"store", "inbox", "forwarder"}
    assert all(component["status"] == "ok" for component in body["components"].values())
    assert (body["components"]["store"]["seq"], body["components"]["store"]["flushedSeq"]) == (30, 20)


def test_health_fails_with_a_component(fresh: Face) -> None:
    """503 where the inbox has stopped, which names it; the others are ok."""
    fresh.lake.inbox.stop()
    answer = fresh.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "failing")
    states = {name: component["status"] for name, component in answer.json()["components"].items()}
    assert states == {"store": "ok", "inbox": "stopped", "forwarder": "ok"}


def test_the_schema_names_every_route_and_no_other(asked: tuple[Face, Model]) -> None:
    """The document is what the application serves, and the page shows all of it from this host."""
    client = asked[0].client
    document = client.get("/schema/openapi.json").json()
    assert document == DOCUMENT and document["openapi"].startswith("3.")
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    served = {
        (method, re.sub(r"\{record_id(:path)?\}", "{recordId}", route.path).replace("{letter_id:str}", "{id}"))
        for route in client.app.routes
        for method in route.methods
        if method != "OPTIONS" and not route.path.startswith("/schema")
    }
    assert described == served
    for path in ("/schema", "/schema/openapi.json"):
        assert is_problem(client.get(f"{path}?x=1"), 400, "invalid_parameter")
    page = client.get("/schema")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert all(f"<code>{method} {path}</code>" in page.text for method, path in described)
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page.text)
