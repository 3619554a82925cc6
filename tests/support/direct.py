"""A store and a committer without threads: every step happens in the test, in its order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ingest.batch import Batch, Chunk, Located, Record, Reject, Source
from ingest.committer import Committer, CommitterSettings
from ingest.plan import Piece, Result
from store.compaction import CompactionSettings
from store.files import Disk
from store.identity import Identity, save_identity
from store.journal import Position, Rules
from store.outcomes import FieldError
from store.schema import FORMAT_VERSION, RECORD, STORED
from store.store import Store, StoreSettings
from tests.support.model import Canonical, Model

__all__ = ["Direct", "assert_holds", "batch_of", "chunk_of", "open_store", "record_batch", "record_of", "weaken"]

START_US = 1_709_294_400_000_000
DAY_US = 86_400_000_000


class Direct(Committer):
    """What is submitted is committed when `submit` returns, unless `held`."""

    held = False

    def __init__(self, store: Store, settings: CommitterSettings | None = None, **options: Any) -> None:
        super().__init__(store, Rules("10000"), settings or CommitterSettings(ahead_rows=1), **options)

    def submit(self, batch: Batch, pieces: Sequence[Piece] = ()) -> Future[Result]:
        future = super().submit(batch, pieces)
        if not self.held:
            self.drain()
        return future

    def drain(self) -> None:
        """Commit all that waits."""
        while self.run_once(0.0):
            pass

    def take(self, records: list[Canonical | None], **options: bool) -> dict[str, Any]:
        """Commit a batch; the answer in the shape of `Model.take`."""
        return answer_of(self.submit(batch_of(records, **options)).result(0))


def answer_of(result: Result) -> dict[str, Any]:
    """An answer in the shape of the model's."""
    answer = result.answer
    problems: list[dict[str, Any]] = []
    for problem in answer.problems:
        if problem.status == "rejected":
            problems.append({"index": problem.index, "status": "rejected"})
        else:
            assert isinstance(problem.fields, tuple)
            problems.append(
                {
                    "index": problem.index,
                    "recordId": problem.record_id,
                    "status": "conflict",
                    "seq": problem.seq,
                    "fields": list(problem.fields),
                }
            )
    return {
        "received": answer.received,
        "accepted": answer.accepted,
        "duplicate": answer.duplicate,
        "conflict": answer.conflict,
        "rejected": answer.rejected,
        "firstSeq": answer.first_seq,
        "lastSeq": answer.last_seq,
        "problems": problems,
    }


def open_store(root: Path, disk: Disk | None = None, segment_bytes: int = 2_000) -> Store:
    """Open a data directory without syncs, that compacts whatever can be compacted at once."""
    compaction = CompactionSettings(grace_s=0.0, rest_s=0.0)
    return Store(StoreSettings(root, fsync=False, segment_bytes=segment_bytes, compaction=compaction), disk=disk)


def weaken(root: Path, bits: int) -> None:
    """Make a new data directory whose hashes have few bits, so that they collide."""
    root.mkdir()
    save_identity(Disk(fsync=False), root, Identity(FORMAT_VERSION, "00" * 16, "11" * 16, bits))


def record_of(number: int, **changes: Any) -> Canonical:
    """A record that is a function of its number: few keys, two units, several days."""
    from decimal import Decimal

    fields: dict[str, Any] = {
        "recordId": f"id-{number}",
        "time": START_US + (number * 7_919_000_017) % (3 * DAY_US),
        "sourceId": f"s{number % 2}",
        "destinationId": f"d{number % 3}",
        "type": "negative" if number % 3 == 0 else "positive",
        "value": Decimal(number * 1_003 % 20_000) + Decimal(number % 5) / 10**9,
        "unit": "kg" if number % 5 == 0 else "SEK",
        "reference": f"r{number % 2}",
    }
    return tuple((fields | changes).values())  # type: ignore[return-value]


def record_batch(records: list[Canonical]) -> pa.RecordBatch:
    """Records with the schema `RECORD`."""
    columns = list(zip(*records, strict=True)) if records else [()] * len(RECORD)
    arrays = [
        pa.array(column, pa.int64()).cast(field.type) if field.name == "time" else pa.array(column, field.type)
        for column, field in zip(columns, RECORD, strict=True)
    ]
    return pa.record_batch(arrays, schema=RECORD)


def chunk_of(records: list[Canonical | None], begin: int = 0) -> Chunk:
    """A chunk; None stands for a record that broke a rule. Positions count records."""
    good = [(index, record) for index, record in enumerate(records, begin) if record is not None]
    error = FieldError("value", "value_scale", "too many digits")
    rejects = [Reject(i, None, None, (error,), b"bad") for i, record in enumerate(records, begin) if record is None]
    return Chunk(
        records=record_batch([record for _, record in good]),
        index=np.array([index for index, _ in good], dtype=np.int64),
        rejects=rejects,
        received=len(records),
        locate=lambda row: Located(None, good[row][1][0].encode()),
        end=Position(offset=begin + len(records), index=begin + len(records)),
    )


def batch_of(records: list[Canonical | None], *, chunk_rows: int = 0, **options: Any) -> Batch:
    """A request with these records, in chunks of so many rows."""
    rows = chunk_rows or max(len(records), 1)
    chunks = tuple(chunk_of(records[at : at + rows], at) for at in range(0, max(len(records), 1), rows))
    return Batch(Source(request="test"), chunks, **options)


def single(record: Canonical, **options: Any) -> Batch:
    """A single POST."""
    return Batch(Source(request="test"), record=Record(*record), original=b"{}", **options)  # type: ignore[arg-type]


def assert_holds(store: Store, model: Model) -> None:
    """Everything that is kept agrees with the model: log, hot rows and Parquet, index, summaries, `committed.json`."""
    assert store.seq == len(model.stored)
    root = store.root
    above = [stored for stored in model.stored if stored.threshold]
    for feed, meant, line_of in (
        ("notifications", model.stored, model.notification), ("alerts", above, model.alert)
    ):  # fmt: skip
        floor = store.state.kept.get(f"outbox/{feed}", 0)
        segments = {int(path.stem): _lines(path) for path in sorted((root / "outbox" / feed).glob("*.jsonl"))}
        assert all(json.loads(found[0])["seq"] == first >= floor for first, found in segments.items() if found)
        lines = [line for found in segments.values() for line in found]
        kept = [stored for stored in meant if stored.seq >= floor]
        assert len(lines) == len(kept)
        for line, stored in zip(lines, kept, strict=True):
            assert line == line_of(stored, json.loads(line)["processedAt"])
    snapshot = store.snapshot()
    assert [table.num_rows > 0 for table in snapshot.hot] == [True] * len(snapshot.hot)
    tables = [pq.read_table(file.path, partitioning=None).cast(STORED) for file in snapshot.files]
    rows = pa.concat_tables([STORED.empty_table(), *tables, *snapshot.hot]).sort_by("seq")
    rows = rows.set_column(2, "time", rows.column("time").cast(pa.int64()))
    values = zip(*(column.to_pylist() for column in rows.columns[:9]), strict=True)
    assert list(values) == [(stored.seq, *stored.record) for stored in model.stored]
    assert {str(path.relative_to(root)) for path in root.glob("records/**/*.parquet")} == {
        file.name for file in snapshot.files
    }
    for stored in model.stored:
        found = store.find(stored.record[0])
        assert found is not None
        assert found.column("seq").to_pylist() == [stored.seq]
    assert store.find("never seen") is None
    assert _counts(store, model) == {}


def _lines(path: Path) -> list[str]:
    return path.read_text().split("\n")[:-1]


def _counts(store: Store, model: Model) -> dict[tuple[str, str], tuple[int, int]]:
    """Keys whose summaries do not count as many records as the model has."""
    wrong = {}
    for key in {(stored.record[3], stored.record[7]) for stored in model.stored}:
        hi, lo = store.hasher.keys(pa.array([key[0]]), pa.array([key[1]]))
        _, rows = store.head.find_summaries(hi, lo)
        counted = sum(rows.column("count").to_pylist())
        expected = sum((stored.record[3], stored.record[7]) == key for stored in model.stored)
        if counted != expected:
            wrong[key] = (counted, expected)
    return wrong
