"""Snapshots made of plain records: some in Parquet files by day, some hot, without a store."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from store.flush import checksum_of
from store.rollups import Rollup, of_records, pages
from store.schema import STORED
from store.snapshot import SealedFile, Snapshot

__all__ = ["DAY_US", "START_US", "record", "snapshot_of", "stored"]

DAY_US = 86_400_000_000
START_US = 1_709_294_400_000_000  # 2024-03-01T12:00:00Z
PROCESSED_US = START_US + 30 * DAY_US


def record(**fields: Any) -> dict[str, Any]:
    """A record with these fields; `time` in microseconds, the others have defaults."""
    return {
        "recordId": "rec-001",
        "time": START_US,
        "sourceId": "source-a",
        "destinationId": "dest-123",
        "type": "positive",
        "value": Decimal("125.5"),
        "unit": "SEK",
        "reference": "invoice-9",
        **fields,
    }


def stored(records: Sequence[dict[str, Any]], first_seq: int = 1) -> pa.Table:
    """Records as they are committed, with dense seqs."""
    rows = [
        {"seq": first_seq + number, **fields, "processedAt": PROCESSED_US + number}
        for number, fields in enumerate(records)
    ]
    return pa.Table.from_pylist(rows, schema=STORED)


def snapshot_of(
    root: Path, records: Sequence[dict[str, Any]], flushed: int, overlap: int = 0, rolled_up: Sequence[int] = ()
) -> Snapshot:
    """Records 1 to `flushed` in files by day, the others hot in two tables; rollups that end at the given seqs.

    `overlap` rows stand on the other side as well, as they do while a flush is under way.
    """
    (root / "records").mkdir(parents=True, exist_ok=True)
    days: dict[int, list[dict[str, Any]]] = {}
    table = stored(records)
    for row in table.slice(0, min(flushed + overlap, len(records))).cast(_INTEGERS).to_pylist():
        days.setdefault(row["time"] // DAY_US, []).append(row)
    files = [_file(root, day, rows) for day, rows in days.items()] if flushed else []
    hot = table.slice(max(flushed - overlap, 0))
    middle = hot.num_rows // 2
    rollups = [
        Rollup(list(pages(of_records([table.slice(begin, end - begin)]))), f"{begin}", begin + 1, end)
        for begin, end in itertools.pairwise([0, *rolled_up])
    ]
    return Snapshot(len(records), flushed, tuple(files), (hot.slice(0, middle), hot.slice(middle)), tuple(rollups))


_INTEGERS = pa.schema([field.with_type(pa.int64()) if pa.types.is_timestamp(field.type) else field for field in STORED])


def _file(root: Path, day: int, rows: list[dict[str, Any]]) -> SealedFile:
    rows.sort(key=lambda row: (row["destinationId"].encode(), row["time"], row["seq"]))
    path = root / "records" / f"{day}-{len(list((root / 'records').iterdir()))}.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=STORED), path)
    seqs, times = [row["seq"] for row in rows], [row["time"] for row in rows]
    return SealedFile(path, path.name, day, len(rows), min(seqs), max(seqs), min(times), max(times), *checksum_of(path))
