"""The real service, as its users meet it: files dropped, records posted, Parquet read by another process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.service import Service, oncelake, wait_until

SAMPLE = {
    "recordId": "rec-001",
    "time": "2024-03-01T12:00:00Z",
    "sourceId": "source-a",
    "destinationId": "dest-123",
    "type": "positive",
    "value": 125.50,
    "unit": "SEK",
    "reference": "invoice-9",
}


def lines(count: int, prefix: str = "r") -> bytes:
    """NDJSON of so many records."""
    return b"".join(
        json.dumps({**SAMPLE, "recordId": f"{prefix}-{number}", "destinationId": f"d{number % 7}"}).encode() + b"\n"
        for number in range(count)
    )


def drop(service: Service, name: str, data: bytes) -> None:
    """Drop a file by rename."""
    hidden = service.data / "inbox" / f".{name}"
    hidden.write_bytes(data)
    hidden.rename(service.data / "inbox" / name)


def test_the_mission_s_sample_goes_in_by_http_and_comes_back(tmp_path: Path) -> None:
    """201, then 200 as a duplicate, then 409; the aggregation, the notification and the record itself follow."""
    with Service(tmp_path / "data") as service:
        body = json.dumps(SAMPLE).replace("125.5", "125.50").encode()
        first = service.post(body)
        assert (first.status_code, first.text) == (201, '{"recordId":"rec-001","status":"accepted","seq":1}')
        again = service.post(body)
        assert (again.status_code, again.text) == (200, '{"recordId":"rec-001","status":"duplicate","seq":1}')
        other = service.post(body.replace(b"SEK", b"EUR"))
        assert other.status_code == 409 and other.headers["content-type"] == "application/problem+json"
        assert {key: other.json()[key] for key in ("code", "recordId", "seq", "fields")} == {
            "code": "conflict",
            "recordId": "rec-001",
            "seq": 1,
            "fields": ["unit"],
        }
        totals = service.get("/records/aggregations", destinationId="dest-123").json()
        assert totals["groups"][0]["total"] == "125.5"
        assert totals["groups"][0]["records"][0]["value"] == "125.5"
        assert service.get("/records/rec-001").json()["seq"] == 1
        assert service.get("/health").json()["status"] == "ok"
        assert service.stop() == 0
    line = (service.data / "outbox/notifications/00000000000000000001.jsonl").read_text()
    assert json.loads(line)["previous"]["count"] == 0
    assert json.loads((service.data / "outbox/notifications/committed.json").read_text()) == {"seq": 1}


def test_twenty_thousand_small_files_are_all_processed_once(tmp_path: Path) -> None:
    """Every file has a receipt, every record is stored once, and the inbox is empty."""
    with Service(tmp_path / "data") as service:
        for number in range(20_000):
            drop(service, f"f{number}.ndjson", lines(1, f"f{number}"))
        wait_until(service.inbox_is_empty, 240)
        processed = service.data / "processed"
        wait_until(lambda: sum(name.endswith(".receipt.json") for name in os.listdir(processed)) == 20_000)
        assert sum(receipt["accepted"] for receipt in service.receipts().values()) == 20_000
        totals = service.get("/records/aggregations", include="totals").json()["totals"]
        assert [total["count"] for total in totals] == [20_000]
        assert service.stop() == 0


def test_a_file_that_is_still_being_written_is_not_touched(tmp_path: Path) -> None:
    """It is taken once its writer has closed it; files beside it go through meanwhile."""
    with Service(tmp_path / "data") as service:
        path = service.data / "inbox" / "slow.ndjson"
        with path.open("wb") as file:
            file.write(lines(3, "slow"))
            file.flush()
            drop(service, "quick.ndjson", lines(2, "quick"))
            wait_until(lambda: "quick.ndjson" in service.receipts())
            assert path.exists() and "slow.ndjson" not in service.receipts()
            file.write(lines(4, "late"))
        wait_until(lambda: "slow.ndjson" in service.receipts())
        assert service.receipts()["slow.ndjson"]["accepted"] == 7


def test_a_file_that_cannot_be_decoded_fails_and_the_next_one_goes_on(tmp_path: Path) -> None:
    """Its receipt says why and counts what was accepted before; the same file mended is all right."""
    with Service(tmp_path / "data") as service:
        drop(service, "a.parquet", b"this is no parquet")
        drop(service, "b.txt", b"hello")
        drop(service, "c.json", b'[{"recordId":')
        drop(service, "d.ndjson", lines(5))
        wait_until(lambda: "d.ndjson" in service.receipts() and len(service.receipts("failed")) == 3)
        failed = service.receipts("failed")
        assert set(failed) == {"a.parquet", "b.txt", "c.json"}
        assert all(receipt["code"] and receipt["message"] for receipt in failed.values())
        assert service.receipts()["d.ndjson"]["accepted"] == 5


def test_the_same_content_dropped_again_is_all_duplicates(tmp_path: Path) -> None:
    """Also under the same name, whose file in processed/ then gets a number."""
    with Service(tmp_path / "data") as service:
        for number in range(3):
            drop(service, "same.ndjson", lines(10))
            wait_until(lambda number=number: len(service.receipts()) == number + 1)  # type: ignore[misc]
        receipts = service.receipts()
        assert set(receipts) == {"same.ndjson", "same.2.ndjson", "same.3.ndjson"}
        assert receipts["same.ndjson"]["accepted"] == 10
        assert receipts["same.2.ndjson"]["duplicate"] == receipts["same.3.ndjson"]["duplicate"] == 10


READER = """
import duckdb, pathlib, sys
pattern, stop = sys.argv[1], pathlib.Path(sys.argv[2])
runs = wrong = 0
query = '''SELECT count(*), count(DISTINCT seq), count(DISTINCT recordId), coalesce(max(seq), 0)
           FROM read_parquet(?, hive_partitioning = true)'''
while not stop.exists():
    try:
        rows, seqs, ids, top = duckdb.execute(query, [pattern]).fetchone()
    except duckdb.IOException:
        continue
    runs += 1
    wrong += not (rows == seqs == ids)
print(runs, wrong, top)
"""


def test_the_analysts_glob_never_shows_a_record_twice_or_too_early(tmp_path: Path) -> None:
    """A second process counts in a loop while the service takes files, flushes, is killed and starts again."""
    stop = tmp_path / "stop"
    service = Service(tmp_path / "data", oncelake_store__flush_interval_s="0.05")
    with service:
        reader = subprocess.Popen(
            [sys.executable, "-c", READER, f"{service.data}/records/**/*.parquet", str(stop)], stdout=subprocess.PIPE
        )
        for number in range(12):
            drop(service, f"f{number}.ndjson", lines(5_000, f"f{number}"))
            if number % 4 == 3:
                service.kill()
                service.start()
        wait_until(service.inbox_is_empty, 120)
        wait_until(lambda: service.get("/health").json()["components"]["store"]["flushedSeq"] == 60_000)
        stop.touch()
        output, _ = reader.communicate(timeout=60)
        runs, wrong, top = map(int, output.split())
        assert runs > 10 and wrong == 0 and top <= 60_000
        assert service.stop() == 0
    assert oncelake("verify", data=service.data).returncode == 0


def test_a_start_says_what_it_found(tmp_path: Path) -> None:
    """How long it took, how many records there are, and what the last run left to do."""
    with Service(tmp_path / "data", oncelake_store__flush_interval_s="3600") as service:
        assert service.post(lines(3), "application/x-ndjson").status_code == 200
        service.kill()
        service.start()
        said = re.findall(r"INFO oncelake.service: opened (.+) in \d+\.\d s: (.+)", service.log())
    assert said == [
        (str(service.data), "0 records, 0 of them not in the Parquet yet"),
        (str(service.data), "3 records, 3 of them not in the Parquet yet"),
    ]


def test_a_second_process_cannot_open_the_same_data_directory(tmp_path: Path) -> None:
    """`oncelake ingest` refuses with a message that names the process and what to do."""
    with Service(tmp_path / "data") as service:
        sample = tmp_path / "x.ndjson"
        sample.write_bytes(lines(1))
        refused = oncelake("ingest", str(sample), data=service.data)
        assert refused.returncode == 1
        assert str(service.pid) in refused.stderr


@pytest.mark.parametrize("atomic", ["true", "false"])
def test_a_batch_with_a_bad_record_is_stored_in_part_unless_atomic(tmp_path: Path, atomic: str) -> None:
    """422 and nothing stored with `atomic`, 200 and the good ones without."""
    with Service(tmp_path / "data") as service:
        body = lines(3) + b"{broken\n"
        answer = service.post(body, "application/x-ndjson", atomic=atomic)
        stored = httpx.get(f"{service.url}/records/aggregations?include=totals").json()
        if atomic == "true":
            assert answer.status_code == 422 and answer.json()["code"] == "atomic_refused"
            assert answer.json()["accepted"] == 3 and answer.json()["firstSeq"] is None
            assert stored["totals"] == []
        else:
            assert answer.status_code == 200 and answer.json()["accepted"] == 3
            assert stored["totals"][0]["count"] == 3
