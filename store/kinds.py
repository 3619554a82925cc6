"""The kinds of runs that a flush adds to: how each is mapped, when runs are merged, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from store import index, rollups, summaries
from store.catalog import RunRow
from store.files import Disk
from store.ranges import merge_ranges, tier_to_merge
from store.runs import Run, map_run, schema_in_file, with_filter

__all__ = ["KINDS", "Kind", "opened"]


@dataclass(frozen=True)
class Kind:
    """One kind. `map` opens a file, `to_merge` chooses what to merge now, `merged` gives the pages of the outcome.

    `written` is a page as it stands in a file, where it has the columns of `schema`.
    """

    schema: pa.Schema
    map: Callable[[Path, RunRow], Any]
    to_merge: Callable[[Sequence[RunRow]], list[RunRow]]
    merged: Callable[[Sequence[Any]], Iterator[pa.RecordBatch]]
    written: Callable[[pa.RecordBatch], pa.RecordBatch]


def opened(disk: Disk, root: Path, row: RunRow) -> Any:
    """A run that was just written, read once: commits that look into it do not wait for its pages."""
    path = root / row.name
    run = KINDS[row.kind].map(path, row)
    if isinstance(run, Run):
        run.touch()
        run.gather_filters(disk, path.parent)
    return run


def _hashed(
    schema: pa.Schema, combine: Callable[[pa.RecordBatch], pa.RecordBatch], before: pa.Schema | None = None
) -> Kind:
    """A kind that is looked up by hash. Its runs had the columns `before`, and are made anew where they have them."""

    def merged(runs: Sequence[Run]) -> Iterator[pa.RecordBatch]:
        return merge_ranges([run.read_through() for run in runs], combine)

    def mapped(path: Path, row: RunRow) -> Run:
        return map_run(path, row.name, schema, before)

    return Kind(schema_in_file(schema), mapped, _tier, merged, with_filter)


def _tier(rows: Sequence[RunRow]) -> list[RunRow]:
    return [rows[number] for number in tier_to_merge([row.rows for row in rows])]


def _neighbours(rows: Sequence[RunRow]) -> list[RunRow]:
    ordered = sorted(rows, key=lambda row: row.min_seq)
    count = rollups.adjacent_to_merge([row.rows for row in ordered])
    return ordered[len(ordered) - count :]


KINDS = {
    "index": _hashed(index.INDEX_SCHEMA, index.sorted_entries),
    "summaries": _hashed(summaries.SUMMARY_RUN, summaries.merged, summaries.SUMMARY_SCHEMA),
    "rollups": Kind(
        rollups.ROLLUP_SCHEMA,
        lambda path, row: rollups.map_rollup(path, row.name, row.min_seq, row.max_seq),
        _neighbours,
        rollups.merged,
        lambda page: page,
    ),
}
"""By the name that the catalog and the directory below `internal/` have for them."""
