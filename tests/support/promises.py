"""What must hold of a data directory whatever happened to it, checked quickly against a history that ran to its end.

The history is one run of a scenario without faults, checked against the model. Any state that a fault leaves of it
must come back as one of its commits: none that was answered may be missing, none half there.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from store.hashing import Hasher
from store.log import FEEDS, parse_notifications
from store.rollups import HOUR_US, covering
from store.schema import STORED
from store.store import Store

__all__ = ["FEEDS", "LOGS", "History", "assert_feed_seen", "assert_foreign_view", "assert_kept", "assert_records_seen"]

LOGS = ("outbox/notifications", "outbox/alerts", "rejected")

Sizes = tuple[int, int, int]
"""Bytes of the three logs."""


@dataclass
class History:
    """A complete run: all bytes of its logs, and their sizes after each commit (the first entry: at the begin).

    Segments may be removed on the way: `begins` says where in the bytes of its log each segment begins, `floors` below
    which number the segments of each log may be gone at each commit.
    """

    logs: dict[str, bytes] = field(default_factory=lambda: dict.fromkeys(LOGS, b""))
    begins: dict[str, dict[str, int]] = field(default_factory=lambda: {log: {} for log in LOGS})
    commits: list[Sizes] = field(default_factory=list)
    floors: list[Mapping[str, int]] = field(default_factory=list)
    rows: pa.Table = field(default_factory=STORED.empty_table)
    _expected: dict[tuple[str, int], Any] = field(default_factory=dict)

    def committed(self, root: Path, floors: Mapping[str, int]) -> None:
        """A commit was made in this directory."""
        for log in LOGS:
            for name, begin, data in self.segments(root, log):
                self.begins[log][name] = begin
                self.logs[log] = self.logs[log][:begin] + data
        self.commits.append(tuple(len(self.logs[log]) for log in LOGS))  # type: ignore[arg-type]
        self.floors.append(dict(floors))

    def finished(self) -> None:
        """The run has come to its end."""
        self.rows = parse_notifications(self.logs[LOGS[0]])

    def segments(self, root: Path, log: str) -> Iterator[tuple[str, int, bytes]]:
        """(name, where it begins in the log, bytes) of the segments that hold something, in their order."""
        at = 0
        for path in sorted((root / log).glob("*.jsonl")):
            if data := path.read_bytes():
                begin = self.begins[log].get(path.name, at)
                yield path.name, begin, data
                at = begin + len(data)

    def expected(self, log: str, floor: int, end: int) -> list[str]:
        """The segments of a log up to an end that must be there, where those below a number may be gone."""
        return [name for name, begin in self.begins[log].items() if begin < end and int(Path(name).stem) >= floor]

    def seq_of(self, sizes: Sizes) -> int:
        """The newest seq of a commit."""
        return self.logs[LOGS[0]].count(b"\n", 0, sizes[0])

    def final(self, log: str, seq: int) -> bytes:
        """The lines of a feed up to a seq."""
        return self._remembered(log, seq, lambda until: self._final(log, until))  # type: ignore[no-any-return]

    def _final(self, log: str, seq: int) -> bytes:
        return b"".join(line for line in self.logs[log].splitlines(True) if json.loads(line)["seq"] <= seq)

    def summaries(self, seq: int) -> dict[tuple[str, str, str], tuple[Any, ...]]:
        """(destinationId, reference, unit) to count, positive, negative, first, last, lastSeq."""
        return self._remembered("summaries", seq, self._summaries)

    def rollups(self, seq: int) -> dict[tuple[int, str, str], tuple[Any, ...]]:
        """(hour, destinationId, unit) to positives, negatives, positive, negative."""
        return self._remembered("rollups", seq, self._rollups)

    def _remembered(self, kind: str, seq: int, make: Any) -> Any:
        if (kind, seq) not in self._expected:
            self._expected[kind, seq] = make(seq)
        return self._expected[kind, seq]

    def _until(self, seq: int) -> list[dict[str, Any]]:
        rows = self.rows.slice(0, seq)
        times = rows.column("time").cast(pa.int64()).to_pylist()
        return [{**row, "time": time} for row, time in zip(rows.drop_columns(["time"]).to_pylist(), times, strict=True)]

    def _summaries(self, seq: int) -> dict[tuple[str, str, str], tuple[Any, ...]]:
        groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for row in self._until(seq):
            groups.setdefault((row["destinationId"], row["reference"], row["unit"]), []).append(row)
        return {
            key: (
                len(rows),
                sum(row["value"] for row in rows if row["type"] == "positive"),
                sum(row["value"] for row in rows if row["type"] == "negative"),
                min(row["time"] for row in rows),
                max(row["time"] for row in rows),
                rows[-1]["seq"],
            )
            for key, rows in groups.items()
        }

    def _rollups(self, seq: int) -> dict[tuple[int, str, str], tuple[Any, ...]]:
        sums: dict[tuple[int, str, str], list[Any]] = {}
        for row in self._until(seq):
            held = sums.setdefault((row["time"] // HOUR_US, row["destinationId"], row["unit"]), [0, 0, 0, 0])
            at = 0 if row["type"] == "positive" else 1
            held[at] += 1
            held[at + 2] += row["value"]
        return {key: tuple(held) for key, held in sums.items()}


@lru_cache(4096)
def _parsed(digest: int, data: bytes) -> pa.Table:
    return pq.read_table(pa.BufferReader(data), partitioning=None).cast(STORED)


def _parquet(path: Path) -> pa.Table:
    data = path.read_bytes()
    return _parsed(xxhash.xxh3_64_intdigest(data), data)


def assert_foreign_view(root: Path, history: History, most: int) -> None:
    """What others see of the directory before the next start: analysts and programs that tail the feeds."""
    assert_records_seen(root, history, most)
    for feed in FEEDS:
        assert_feed_seen(root, feed, history, most)


def assert_records_seen(root: Path, history: History, most: int) -> None:
    """Each record of the glob is a committed one and there once."""
    newest = history.seq_of(history.commits[min(most, len(history.commits) - 1)])
    seen: Counter[int] = Counter()
    for path in root.glob("records/**/*.parquet"):
        rows = _parquet(path)
        seqs = rows.column("seq").to_numpy()
        seen.update(seqs.tolist())
        assert len(seqs) and seqs.max() <= newest, f"{path.name} holds seqs that are not committed"
        assert rows.equals(history.rows.take(pa.array(seqs - 1))), f"{path.name} holds other records"
    assert not seen or max(seen.values()) == 1, f"records stand twice in the glob: {seen}"


def assert_feed_seen(root: Path, feed: str, history: History, most: int) -> None:
    """`committed.json` of a feed is whole, and the lines are final up to its seq."""
    path = root / "outbox" / feed / "committed.json"
    if path.exists():
        told = json.loads(path.read_bytes())["seq"]
        assert told <= history.seq_of(history.commits[min(most, len(history.commits) - 1)])
        _assert_final(root, history, f"outbox/{feed}", told, most)


def _assert_final(root: Path, history: History, log: str, told: int, most: int) -> None:
    """The lines up to a seq are those of the history, but for segments that the retention may have removed."""
    final = history.final(log, told)
    there = {name: data for name, _, data in history.segments(root, log)}
    floor = history.floors[min(most, len(history.floors) - 1)].get(log, 0)
    gone = set(history.expected(log, floor, len(final))) - set(there)
    assert not gone, f"{log} up to seq {told} lacks {gone}"
    for (name, begin), (_, end) in itertools.pairwise([*history.begins[log].items(), ("", len(final))]):
        if name in there:
            meant, found = final[begin:end], there[name]
            is_closed = end < len(final)  # what stands behind its last line stands between two that are final
            assert found == meant if is_closed else found.startswith(meant), (
                f"{log} up to seq {told} is not as told in {name}"
            )


def assert_kept(store: Store, history: History, answered: int, most: int) -> int:
    """The store holds the history up to one of the commits `answered` to `most`, in every part; which one."""
    segments = {log: list(history.segments(store.root, log)) for log in LOGS}
    found = tuple(max((begin + len(data) for _, begin, data in segments[log]), default=0) for log in LOGS)
    allowed = history.commits[answered : most + 1]
    assert found in allowed, f"the logs have {found} bytes, answered commits allow {allowed}"
    for log, size in zip(LOGS, found, strict=True):
        floor = store.state.kept.get(log, 0)
        assert floor <= history.floors[min(most, len(history.floors) - 1)].get(log, 0)
        assert [name for name, _, _ in segments[log]] == history.expected(log, floor, size)
        for name, begin, data in segments[log]:
            end = begin + len(data)
            assert data == history.logs[log][begin:end], f"{log}/{name} holds other bytes than were committed"
        for (name, begin, data), (_, after, _) in itertools.pairwise(segments[log]):
            assert begin + len(data) == after, f"{log}/{name} does not reach to the next segment"
    seq = history.seq_of(found)  # type: ignore[arg-type]
    assert store.seq == seq
    snapshot = store.snapshot()
    tables = [_parquet(file.path) for file in snapshot.files]
    rows = pa.concat_tables([STORED.empty_table(), *tables, *snapshot.hot]).sort_by("seq")
    assert rows.equals(history.rows.slice(0, seq)), "Parquet and hot rows are not the records of the log, once each"
    in_glob = {str(path.relative_to(store.root)) for path in store.root.glob("records/**/*.parquet")}
    assert in_glob == {file.name for file in snapshot.files}
    _assert_index(store, rows)
    _assert_summaries(store, history.summaries(seq))
    covered = covering(snapshot.rollups, store.flushed)
    assert covered[1] == store.flushed, f"rollups reach seq {covered[1]} of {store.flushed}"
    sums: dict[Any, list[Any]] = {}
    for batch in itertools.chain.from_iterable(rollup.between(*rollup.hours) for rollup in covered[0]):
        for hour, destination, unit, *values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            held = sums.setdefault((hour, destination, unit), [0, 0, 0, 0])
            held[:] = [a + b for a, b in zip(held, values, strict=True)]
    assert {key: tuple(held) for key, held in sums.items()} == history.rollups(store.flushed)
    return history.commits.index(found, answered)  # type: ignore[arg-type]


def _assert_index(store: Store, rows: pa.Table) -> None:
    """Every record is found by its id, once, with its fingerprint."""
    hasher: Hasher = store.hasher
    hi, lo = hasher.identify(rows.column("recordId").combine_chunks())
    order = np.lexsort((lo, hi))
    hits = store.head.find_ids(hi[order], lo[order])
    assert sorted(hits.seq.tolist()) == rows.column("seq").to_pylist()
    assert (rows.column("seq").to_numpy()[order][hits.needle] == hits.seq).all()
    if len(hits.seq):
        assert (hasher.fingerprint(rows)[order][hits.needle] == hits.fp).all()


def _assert_summaries(store: Store, expected: dict[tuple[str, str, str], tuple[Any, ...]]) -> None:
    keys = sorted({key[:2] for key in expected})
    if not keys:
        return
    columns = [pa.array([key[at] for key in keys]) for at in range(2)]
    hi, lo = store.hasher.keys(*columns)
    order = np.lexsort((lo, hi))
    needles, rows = store.head.find_summaries(hi[order], lo[order])
    found: dict[tuple[str, str, str], tuple[Any, ...]] = {}
    values = zip(*(rows.column(name).to_pylist() for name in rows.schema.names[2:]), strict=True)
    for needle, (unit, count, positive, negative, first, last, last_seq) in zip(needles.tolist(), values, strict=True):
        key = (*keys[order[needle]], unit)
        held = found.get(key, (0, 0, 0, first, last, last_seq))
        found[key] = (
            held[0] + count, held[1] + positive, held[2] + negative,
            min(held[3], first), max(held[4], last), max(held[5], last_seq),
        )  # fmt: skip
    assert found == expected
