"""Finished files in groups: one that cannot have its receipt waits by itself."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import ingest.committer
import ingest.files
import ingest.queue
from ingest.batch import Batch, Chunk, Source
from ingest.committer import Committer
from ingest.prepare import Prepared
from ingest.receipts import sha256_of
from store.errors import StoppingError
from store.hashing import Hasher
from store.journal import Rules
from tests.support.direct import chunk_of, open_store, record_of
from tests.support.lake import Lake

FILES = 40


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """A lake with dropped files of one record each."""
    lake = Lake(tmp_path / "data")
    for number in range(FILES):
        lake.drop(f"f{number}.ndjson", line(number))
    return lake


def line(number: int) -> bytes:
    """A record as a line."""
    record = {
        "recordId": f"rec-{number}", "time": "2024-03-01T12:00:00Z", "sourceId": "s", "destinationId": "d",
        "type": "positive", "value": number, "unit": "SEK", "reference": "r",
    }  # fmt: skip
    return json.dumps(record).encode() + b"\n"


def receipts(lake: Lake) -> set[str]:
    """The files that have a receipt that counts their record."""
    found = {path: json.loads(path.read_bytes()) for path in (lake.root / "processed").glob("*.receipt.json")}
    assert all(receipt["accepted"] == 1 for receipt in found.values())
    return {path.name.removesuffix(".receipt.json") for path in found}


def test_a_group_of_files_has_its_receipts_together(lake: Lake) -> None:
    """All are moved, told and forgotten after one scan."""
    assert lake.inbox.run_once() == FILES
    assert receipts(lake) == {f"f{number}.ndjson" for number in range(FILES)}
    assert [path.name for path in (lake.root / "inbox").iterdir()] == []
    assert not [path for path in (lake.root / "processed").iterdir() if path.name.startswith(".")]
    lake.restart()
    assert lake.committer.input_states() == [] and lake.inbox.run_once() == 0
    lake.close()


def test_a_receipt_that_cannot_be_written_keeps_nobody_waiting(lake: Lake) -> None:
    """The file is moved, told as a problem, and has its receipt once that can be written, also after a restart."""
    obstacle = lake.root / "processed" / ".f7.ndjson.receipt.json.tmp"
    obstacle.mkdir()
    assert lake.inbox.run_once() == FILES - 1
    assert receipts(lake) == {f"f{number}.ndjson" for number in range(FILES) if number != 7}
    assert lake.inbox.problem is not None and "f7.ndjson" in lake.inbox.problem
    assert (lake.root / "processed/f7.ndjson").exists()
    lake.restart()
    assert [state.path for state in lake.committer.input_states() if state.done] != []
    obstacle.rmdir()
    lake.inbox.run_once()
    assert len(receipts(lake)) == FILES and lake.inbox.problem is None
    assert lake.store.seq == FILES
    lake.close()


def test_a_file_that_cannot_be_opened_is_told_and_keeps_nobody_waiting(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a problem of the inbox and in the log; it is taken once it can be read."""
    real = os.open

    def refused(path: Any, *rest: Any, **more: Any) -> int:
        if str(path).endswith("f7.ndjson"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "open", refused)
    assert lake.inbox.run_once() == FILES - 1
    assert lake.inbox.problem is not None and "f7.ndjson: [Errno 13] Permission denied" in lake.inbox.problem
    assert "f7.ndjson waits" in caplog.text and lake.inbox.waiting == 1
    monkeypatch.undo()
    assert lake.inbox.run_once() == 1 and lake.inbox.problem is None
    lake.close()


def test_a_file_that_is_taken_back_is_no_problem(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also between the look at its kind and its opening."""
    real = Path.is_file

    def taken_back(path: Path) -> bool:
        found = real(path)
        if path.name == "f7.ndjson":
            path.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(Path, "is_file", taken_back)
    assert lake.inbox.run_once() == FILES - 1 and lake.inbox.problem is None
    lake.close()


@pytest.mark.parametrize(("bound", "value", "pieces"), [("_AHEAD_CHUNKS", 3, 3), ("_AHEAD_BYTES", 1, 2)])
def test_pieces_are_prepared_once_while_their_file_is_hashed(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, bound: str, value: int, pieces: int
) -> None:
    """Those that are decoded by then, and never again when they are committed."""
    begun: list[int] = []
    enough = threading.Event()
    prepare = ingest.committer.prepared

    def prepared(records: pa.RecordBatch, hasher: Hasher) -> Prepared:
        begun.append(records.num_rows)
        if len(begun) == pieces:
            enough.set()
        return prepare(records, hasher)

    def hashed(path: Path) -> tuple[int, str]:
        assert enough.wait(20)
        time.sleep(0.05)
        assert len(begun) == pieces
        return sha256_of(path)

    while lake.inbox.run_once():
        pass
    monkeypatch.setattr(ingest.committer, "_SMALL_ROWS", 1)
    monkeypatch.setattr(ingest.committer, "prepared", prepared)
    monkeypatch.setattr(ingest.files, "sha256_of", hashed)
    monkeypatch.setattr(ingest.files, "_LARGE_BYTES", 0)
    monkeypatch.setattr(ingest.files, bound, value)
    lake.drop("large.ndjson", b"".join(map(line, range(1_000, 1_200))))
    assert lake.inbox.run_once() == 1
    assert begun == [16] * 12 + [8]
    lake.close()


def test_a_piece_of_a_service_that_stops_is_refused_as_such(tmp_path: Path) -> None:
    """Not by an error of the threads that would have prepared it."""
    store = open_store(tmp_path / "data")
    committer = Committer(store, Rules("1"))
    committer.start()
    committer.stop()
    chunk = chunk_of([record_of(number) for number in range(1, 2_000)], 0)
    with pytest.raises(StoppingError, match="the service is stopping"):
        committer.submit(Batch(Source(file="f"), (chunk,)), [committer.piece(chunk)])
    store.close()


@pytest.mark.parametrize("ahead", [3, 100])
def test_a_large_file_is_decoded_while_it_is_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    """As far as its bound and no further; a file that breaks before it is hashed keeps what came before the break."""
    whole = b"".join(map(line, range(200)))
    contents = {
        "whole.ndjson": whole,
        "torn.json": b"[" + b",".join(map(line, range(200))) + b", oops",
        "empty.ndjson": b"\n",
    }
    decoded: list[Chunk] = []
    enough = threading.Event()
    decode, hashed = ingest.files.decode_file, ingest.files.sha256_of

    def watched(*arguments: Any) -> Iterator[Chunk]:
        for chunk in decode(*arguments):
            decoded.append(chunk)
            if len(decoded) == ahead:
                enough.set()
            yield chunk

    def slow(path: Path) -> tuple[int, str]:
        enough.wait(0.5)
        time.sleep(0.05)
        assert len(decoded) <= ahead
        return hashed(path)

    told = []
    for large in (1 << 30, 0):
        lake = Lake(tmp_path / f"{large}")
        for name, content in contents.items():
            with monkeypatch.context() as patch:
                if not large:
                    decoded.clear()
                    patch.setattr(ingest.files, "_LARGE_BYTES", large)
                    patch.setattr(ingest.files, "_AHEAD_CHUNKS", ahead)
                    patch.setattr(ingest.files, "decode_file", watched)
                    patch.setattr(ingest.files, "sha256_of", slow)
                lake.drop(name, content)
                assert lake.inbox.run_once() == 1
        receipts = {path.name: json.loads(path.read_bytes()) for path in lake.root.rglob("*.receipt.json")}
        told.append([lake.store.seq, {name: without_times(receipt) for name, receipt in receipts.items()}])
        lake.close()
    assert told[0] == told[1]
    torn = told[0][1]["torn.json.receipt.json"]
    assert len(told[0][1]) == 3 and torn["received"] > 0 and "code" in torn
    assert enough.is_set() == (ahead == 3)


def test_a_file_that_begins_while_requests_come_has_shorter_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever posts waits for one of them."""
    monkeypatch.setattr(ingest.queue, "_SHORT_ROWS", 5)
    decode = ingest.files.decode_file
    decoded: list[Chunk] = []

    def watched(*arguments: Any) -> Iterator[Chunk]:
        for chunk in decode(*arguments):
            decoded.append(chunk)
            yield chunk

    monkeypatch.setattr(ingest.files, "decode_file", watched)
    lake = Lake(tmp_path / "data", chunk_rows=16)
    lake.drop("before.ndjson", b"".join(map(line, range(32))))
    assert lake.inbox.run_once() == 1
    assert [chunk.received for chunk in decoded] == [16, 16]
    decoded.clear()
    lake.post(line(32))
    lake.drop("beside.ndjson", b"".join(map(line, range(40, 55))))
    assert lake.inbox.run_once() == 1
    assert [chunk.received for chunk in decoded] == [5, 5, 5]
    assert lake.store.seq == 32 + 1 + 15
    lake.close()


def without_times(receipt: dict[str, Any]) -> dict[str, Any]:
    """What two runs have in common."""
    return {name: value for name, value in receipt.items() if name not in ("startedAt", "finishedAt")}
