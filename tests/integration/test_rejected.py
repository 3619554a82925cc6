"""Dead letters over HTTP: listed newest first, page by page, and sent again with what became of them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from litestar.testing import TestClient
from pyarrow import csv

from api.app import create_app
from api.ports import ApiSettings
from service.config import Config, StoreConfig
from service.runtime import Lake, Reader
from store import letters as module
from store.engine import Engine
from store.letters import Letters, Wanted, place_of
from store.verify import verify

RECORD = {
    "recordId": "rec-001",
    "time": "2024-03-01T12:00:00Z",
    "sourceId": "source-a",
    "destinationId": "dest-123",
    "type": "positive",
    "value": "1",
    "unit": "SEK",
    "reference": "r",
}


def record(number: int, **changes: Any) -> dict[str, Any]:
    return {**RECORD, "recordId": f"rec-{number:03}", **changes}


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    found = Lake(Config(store=StoreConfig(data_dir=str(tmp_path / "data"), fsync=False)))
    found.start(inbox=False)
    yield found
    found.stop()


@pytest.fixture
def client(lake: Lake, tmp_path: Path) -> Iterator[TestClient[Any]]:
    (tmp_path / "temp").mkdir()
    engine = Engine(lake.store.root, tmp_path / "temp", observe=lake.metrics.asked)
    with TestClient(create_app(lake.intake, Reader(lake, engine), ApiSettings())) as found:
        yield found
    engine.close()


def items(client: TestClient[Any], **parameters: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/rejected", params=parameters).json()["items"]
    return found


def sent_again(client: TestClient[Any], letter: str, content: Any) -> Any:
    return client.post(f"/rejected/{letter}/resubmit", json=content)


def test_letters_are_listed_newest_first_and_filtered(client: TestClient[Any]) -> None:
    """By status, sourceId and file; each item has the members of the contract."""
    client.post("/records", json=record(1))
    client.post("/records", json=record(1, value="2", sourceId="source-b"))
    client.post("/records", json=record(2, value="-1"))
    found = items(client)
    assert [(item["status"], item["recordId"]) for item in found] == [("rejected", "rec-002"), ("conflict", "rec-001")]
    assert found[0]["errors"][0]["field"] == "value"
    assert found[1]["fields"] == ["sourceId", "value"]
    assert json.loads(found[1]["record"])["value"] == "2"
    assert set(found[0]) >= {"id", "status", "recordId", "errors", "fields", "record", "source", "time"}
    assert [item["recordId"] for item in items(client, status="conflict")] == ["rec-001"]
    assert [item["recordId"] for item in items(client, sourceId="source-b")] == ["rec-001"]
    assert items(client, file="none.csv") == []


@pytest.mark.parametrize("fmt", ["csv", "parquet", "arrow"])
def test_letters_of_every_format_are_found_by_their_source(client: TestClient[Any], fmt: str) -> None:
    """A rejection and a conflict of each; a sourceId that is itself not valid finds nothing, and is null."""
    client.post("/records", json=record(1))
    changes = ({"unit": ""}, {"sourceId": "source-b", "unit": "u" * 33}, {"sourceId": "source-b"}, {"sourceId": ""})
    rows = [record(2, **changes[0]), record(3, **changes[1]), record(1, **changes[2]), record(4, **changes[3])]
    table, sink = pa.Table.from_pylist(rows), io.BytesIO()
    if fmt == "csv":
        csv.write_csv(table, sink)
    elif fmt == "parquet":
        pq.write_table(table, sink)
    else:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    media = {"csv": "text/csv", "parquet": "application/vnd.apache.parquet"}
    kind = media.get(fmt, "application/vnd.apache.arrow.stream")
    counts = client.post("/records", content=sink.getvalue(), headers={"content-type": kind}).json()
    assert (counts["conflict"], counts["rejected"]) == (1, 3)
    assert [item["recordId"] for item in items(client, sourceId="source-b")] == ["rec-003", "rec-001"]
    assert [item["recordId"] for item in items(client, sourceId="source-a")] == ["rec-002"]
    assert [item["sourceId"] for item in items(client)] == [None, "source-b", "source-a", "source-b"]


def test_a_letter_of_an_older_version_is_found_by_the_source_in_its_record() -> None:
    """Those hold no sourceId; a record that is no JSON has none."""
    old = {"status": "rejected", "source": {"file": None}, "record": json.dumps(record(1))}
    assert Wanted(source_id="source-a").fits(old)
    assert not Wanted(source_id="source-b").fits(old)
    assert not Wanted(source_id="source-a").fits({**old, "record": "rec-1,source-a"})


def test_pages_of_one_walk_hold_every_letter_once_while_more_come(client: TestClient[Any]) -> None:
    """The cursor names the last letter of the page before."""
    for number in range(7):
        client.post("/records", json=[record(number, value="x"), record(100 + number, unit="")])
    walked: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = client.get("/rejected", params={"limit": 3, **cursor}).json()
        walked += [item["recordId"] for item in page["items"]]
        client.post("/records", json=record(500 + len(walked), value="x"))
        if page["nextCursor"] is None:
            break
        cursor = {"cursor": page["nextCursor"]}
    assert walked == [name for number in range(6, -1, -1) for name in (f"rec-{100 + number}", f"rec-{number:03}")]


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "status=lost", "cursor=1", "cursor=a-1", "page=2"])
def test_wrong_parameters_are_named(client: TestClient[Any], query: str) -> None:
    """As everywhere."""
    answer = client.get(f"/rejected?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter")


def test_a_corrected_record_is_stored_and_its_letter_resolved(client: TestClient[Any], lake: Lake) -> None:
    """Lineage is in one commit with the record; a letter that was resolved says by what."""
    client.post("/records", json=record(1, value="x"))
    letter = items(client)[0]["id"]
    answer = sent_again(client, letter, record(1))
    assert (answer.status_code, answer.json()) == (201, {"recordId": "rec-001", "status": "accepted", "seq": 1})
    (found,) = items(client)
    assert (found["id"], found["resolvedBy"]["recordId"], found["resolvedBy"]["seq"]) == (letter, "rec-001", 1)
    (resolved,) = items(client, status="resolved")
    assert (resolved["source"]["letter"], resolved["seq"]) == (letter, 1)
    assert sent_again(client, letter, record(1)).status_code == 200
    lake.flusher.run_once()
    assert verify(lake.store.root).ok


def test_a_record_that_is_wrong_again_is_a_letter_that_names_the_first(client: TestClient[Any]) -> None:
    """So is a conflict; neither resolves anything."""
    client.post("/records", json=record(1))
    client.post("/records", json=record(2, value="x"))
    first = items(client)[0]["id"]
    assert sent_again(client, first, record(2, value="y")).status_code == 422
    assert sent_again(client, first, record(1, value="7")).status_code == 409
    found = items(client)
    assert [item["source"]["letter"] for item in found] == [first, first, None]
    assert {item["resolvedBy"] for item in found} == {None}


def test_only_one_object_for_a_letter_that_there_is(client: TestClient[Any]) -> None:
    """Nothing is stored otherwise."""
    client.post("/records", json=record(1, value="x"))
    letter = items(client)[0]["id"]
    assert sent_again(client, "9-9", record(1)).status_code == 404
    assert sent_again(client, "nothing", record(1)).status_code == 404
    assert sent_again(client, letter, [record(1)]).json()["code"] == "undecodable"
    answer = client.post(f"/rejected/{letter}/resubmit", content=b"a\n1\n", headers={"content-type": "text/csv"})
    assert answer.status_code == 400
    assert len(items(client)) == 1


def test_duckdb_reads_the_files_with_the_same_columns(client: TestClient[Any], lake: Lake) -> None:
    """Conflicts, rejects, what is no text, and what was sent again."""
    client.post("/records", json=record(1))
    client.post("/records", json=record(1, value="2"))
    client.post("/records", content=b'{"recordId":"\xff"}\n', headers={"content-type": "application/x-ndjson"})
    client.post("/records", json=record(2, value="x"))
    assert sent_again(client, items(client)[0]["id"], record(2)).status_code == 201
    glob = str(lake.store.root / "rejected" / "*.jsonl")
    rows = duckdb.sql(
        f"SELECT status, recordId, encoding, len(errors), fields, source.letter FROM read_json('{glob}') ORDER BY id"
    ).fetchall()
    assert [row[0] for row in rows] == ["conflict", "rejected", "rejected", "resolved"]
    assert rows[1][2] == "base64"


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 18])
def test_lines_are_read_backwards_whatever_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """Only what is committed, over several segments, from any place on."""
    monkeypatch.setattr(module, "_BLOCK_BYTES", block)
    ends = []
    for first, count in ((1, 5), (6, 1), (7, 9)):
        path = tmp_path / f"{first:020d}.jsonl"
        lines = [
            json.dumps({"id": f"{first + n}-1", "status": "rejected", "record": "ü" * n, "source": {"file": None}})
            for n in range(count)
        ]
        data = ("\n".join(lines) + "\n").encode()
        path.write_bytes(data + b'{"id":"99-1","status":"rej')
        ends.append((path.name, len(data)))
    letters = Letters(tmp_path, lambda: ends)
    ids = [letter["id"] for letter in letters.newest_first(Wanted())]
    assert ids == [f"{number}-1" for number in range(15, 0, -1)]
    for number in range(1, 17):
        before = [letter["id"] for letter in letters.newest_first(Wanted(before=(number, 1)))]
        assert before == [f"{n}-1" for n in range(number - 1, 0, -1)]
    assert letters.find("6-1") is not None
    assert letters.find("6-2") is None
    assert place_of("6-") is None


def test_metrics_count_what_was_done(client: TestClient[Any], lake: Lake) -> None:
    """Outcomes by source, commits, state and memory, in Prometheus' format."""
    client.post("/records", json=[record(1), record(1), record(1, value="2"), record(2, value="x")])
    client.get("/records/aggregations", params={"include": "totals"})
    lake.flusher.run_once()
    answer = client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=1.0.0; charset=utf-8"
    lines = answer.text.splitlines()
    for outcome in ("accepted", "duplicate", "conflict", "rejected"):
        assert f'oncelake_records_total{{outcome="{outcome}",source="http"}} 1.0' in lines
    for line in (
        "oncelake_commit_seconds_count 1.0",
        "oncelake_commit_records_sum 4.0",
        "oncelake_query_seconds_count 1.0",
        "oncelake_seq 1.0",
        "oncelake_flushed_seq 1.0",
        "oncelake_hot_records 0.0",
        "oncelake_flushes_total 1.0",
        "oncelake_flushed_records_total 1.0",
        'oncelake_runs{kind="index"} 1.0',
    ):
        assert line in lines, line
    assert any(line.startswith("oncelake_memory_anonymous_bytes ") for line in lines)
    assert client.get("/metrics?x=1").status_code == 400
