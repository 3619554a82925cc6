"""The runs of the index and of the summaries as files: mapped, their sums and shapes proven."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from store.arrays import I64
from store.verification.catalog import RunRow
from store.verification.packed import SUMMARY, in_columns
from store.verification.report import Findings, VanishedError

__all__ = ["KINDS", "OpenRun", "batches_of", "check_facts", "open_runs", "summaries_of"]

_DECIMAL = pa.decimal128(38, 9)
_SCHEMAS = {
    "index": [(name, pa.uint64()) for name in ("hi", "lo", "word", "fp")],
    "summaries": [("hi", pa.uint64()), ("lo", pa.uint64()), ("summary", pa.binary())],
    "rollups": [
        ("hour", pa.int64()),
        ("destinationId", pa.string()),
        ("unit", pa.string()),
        ("positives", pa.int64()),
        ("negatives", pa.int64()),
        ("positive", _DECIMAL),
        ("negative", _DECIMAL),
    ],
}

_BEFORE = {"summaries": [SUMMARY]}
"""What a store of an older format has, which is made anew when it is upgraded."""

_FILTER = ("filter", pa.uint16())
_OLD_FILTER = ("filter", pa.uint8())
"""Of format 3, which nobody asks any more."""

_FILTER_SHIFTS = (0, 6, 12, 18, 24)


@dataclass(frozen=True)
class OpenRun:
    """A run, mapped when the store was surveyed: a merge that removes its file does not take its bytes."""

    row: RunRow
    data: pa.Buffer


def open_runs(root: Path, rows: Sequence[RunRow], findings: Findings) -> list[OpenRun]:
    """Map the runs and prove their checksums."""
    runs = []
    for row in rows:
        try:
            with pa.memory_map(str(root / row.name)) as source:
                data = source.read_buffer()
        except FileNotFoundError as error:
            raise VanishedError(f"{root / row.name} is gone") from error
        findings.checked["files"] += 1
        runs.append(OpenRun(row, data))
        found = xxhash.xxh3_64_hexdigest(memoryview(data))
        if (data.size, found) != (row.bytes, row.sum):
            message = f"has {data.size} bytes with checksum {found}, the catalog says {row.bytes} with {row.sum}"
            findings.add(KINDS[row.kind], row.name, message)
    return runs


KINDS = {"index": "index", "summaries": "summary", "rollups": "rollup"}


def batches_of(run: OpenRun, findings: Findings) -> list[pa.RecordBatch]:
    """The pages of a run, still mapped, without their filters; none where they cannot be read."""
    try:
        reader = pa.ipc.open_file(run.data)
        found = [(field.name, field.type) for field in reader.schema]
        has_filter = run.row.kind != "rollups" and found[-1:] == [_FILTER]
        columns = found[:-1] if has_filter or found[-1:] == [_OLD_FILTER] else found
        if columns not in (_SCHEMAS[run.row.kind], *_BEFORE.get(run.row.kind, ())):
            raise pa.ArrowInvalid(f"its columns are {found}")
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        for number, batch in enumerate(batches):
            batch.validate(full=run.row.kind != "index")
            if any(column.null_count for column in batch.columns):
                raise pa.ArrowInvalid("it holds nulls")
            if has_filter and (kept_out := _kept_out(batch)):
                message = f"the filter of page {number} says of {kept_out} of its hashes that they are not there"
                findings.add(KINDS[run.row.kind], run.row.name, message)
    except (OSError, pa.ArrowException) as error:
        findings.add(KINDS[run.row.kind], run.row.name, f"cannot be read: {error}")
        return []
    return [batch.select([name for name, _ in columns]) for batch in batches]


def summaries_of(run: OpenRun, findings: Findings) -> Iterator[pa.RecordBatch]:
    """The pages of a run of summaries in columns, up to the first that cannot be read."""
    for number, page in enumerate(batches_of(run, findings)):
        try:
            columns = in_columns(page) if "summary" in page.schema.names else page
            columns.validate(full=True)
        except pa.ArrowException as error:
            findings.add(KINDS[run.row.kind], run.row.name, f"page {number} cannot be read: {error}")
            return
        yield columns


def _kept_out(page: pa.RecordBatch) -> int:
    """How many of its own hashes do not pass the filter of a page: they would look new."""
    hi, lo, filter_ = (page.column(name).to_numpy() for name in ("hi", "lo", "filter"))
    words = filter_[: len(filter_) // 4 * 4].view("<u8")
    if not len(words):
        return 0
    density = len(hi) / max(float(hi.max() - hi.min()), 1.0)
    even = np.minimum((hi - hi.min()).astype(np.float64) * density, float(len(hi) - 1)).astype(np.int64)
    word = words[np.minimum(even // 4, len(words) - 1)]
    passes = np.ones(len(hi), np.bool_)
    for shift in _FILTER_SHIFTS:
        passes &= (word >> (lo >> np.uint64(shift) & np.uint64(63)) & np.uint64(1)).astype(np.bool_)
    return int(np.count_nonzero(~passes))


def check_facts(run: OpenRun, rows: int, seqs: Sequence[I64], findings: Findings) -> None:
    """Row count and seqs are those that the catalog says."""
    row = run.row
    if rows != row.rows:
        findings.add(KINDS[row.kind], row.name, f"has {rows} rows, the catalog says {row.rows}")
    found = [(int(piece.min()), int(piece.max())) for piece in seqs if len(piece)]
    if not found:
        return
    span = (min(low for low, _ in found), max(high for _, high in found))
    if span != (row.min_seq, row.max_seq):
        message = f"holds seqs {span[0]} to {span[1]}, the catalog says {row.min_seq} to {row.max_seq}"
        findings.add(KINDS[row.kind], row.name, message)
