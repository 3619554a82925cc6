"""Deduplication against mapped runs of the index: what a batch costs when 1, 10 and 100 million ids are known."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from bench.context import Context
from bench.measure import Line, say
from store import kernels
from store.files import Disk
from store.hashing import Hasher
from store.index import INDEX_SCHEMA, entries, find
from store.ranges import RANGE_ROWS
from store.runs import Run, map_run, schema_in_file, with_filter

__all__ = ["dedup"]

_HASHER = Hasher(b"")

_SHARES = (0.7, 0.2, 0.07, 0.03)
"""Runs of different size classes, as tiered merges leave them."""


def dedup(context: Context) -> list[Line]:
    """Batches of 100,000 and 1,000 with 10% known ids: deduplicated, and of that the look-up alone."""
    sizes = [1_000_000, 10_000_000, *([100_000_000] if context.options.full else [])]
    if context.options.quick:
        sizes = [100_000, 1_000_000]
    draw = np.random.default_rng(7)
    indexes: dict[int, list[Run]] = {}
    for size in sizes:
        say(f"  index of {size:,} ids")
        indexes[size] = _index(context.work / f"index-{size}", size, draw)
    lines = []
    for rows, repeats in ((100_000, 15), (1_000, 31)):
        ids = pa.array([f"{number:016x}" for number in range(rows)])
        times: dict[tuple[str, int], list[float]] = {}
        for _ in range(repeats + 1):
            for size, runs in indexes.items():
                hi, lo, known = _batch(runs, rows, draw)
                whole, look_up, found = _deduplicated(ids, hi, lo, runs)
                assert found == known
                times.setdefault(("deduplicated", size), []).append(whole * 1e3)
                times.setdefault(("look-up of it", size), []).append(look_up * 1e3)
        lines += [
            _line(what, rows, size, times[what, size][1:], [] if size == sizes[0] else times[what, sizes[0]][1:])
            for what in ("deduplicated", "look-up of it")
            for size in sizes
        ]
    for size in sizes:
        shutil.rmtree(context.work / f"index-{size}")
    return lines


def _line(what: str, rows: int, size: int, ours: list[float], base: list[float]) -> Line:
    """One size beside the smallest, if it is another one."""
    note = f"{rows / statistics.median(ours) / 1e3:.1f} M/s"
    line = Line("dedup", f"batch of {rows:,}, {size:,} known, {what}", "ms", ours, note=note)
    if base:
        line.peer, line.peers = "the fewest known", base
        if size == 100_000_000:
            line.target, line.at_least = 2.0, False
    return line


def _deduplicated(ids: pa.Array, hi: np.ndarray, lo: np.ndarray, runs: list[Run]) -> tuple[float, float, int]:
    """Seconds for a batch, and for its look-up alone, and how many hashes are known.

    A batch is hashed (the ids are as many, and their hashes not used: those that are sought are drawn), put in order,
    looked up, and the new ones become a run with its filter.
    """
    began = time.perf_counter()
    _HASHER.identify(ids)
    order = kernels.argsort(hi)
    hi, lo = hi[order], lo[order]
    asked = time.perf_counter()
    hits = find(runs, hi, lo)
    found = time.perf_counter()
    is_new = np.ones(len(hi), np.bool_)
    is_new[hits.needle] = False
    assert entries(hi[is_new], lo[is_new], hi[is_new], lo[is_new]).searched.pages == 1
    return time.perf_counter() - began, found - asked, len(hits.needle)


def _index(directory: Path, size: int, draw: np.random.Generator) -> list[Run]:
    """Mapped runs of uniform hashes, as flushes and merges write them."""
    directory.mkdir()
    runs = []
    for number, share in enumerate(_SHARES):
        with (
            pa.OSFile(str(directory / f"{number}.arrow"), "wb") as sink,
            pa.ipc.new_file(sink, schema_in_file(INDEX_SCHEMA)) as writer,
        ):
            for page in _pages(int(size * share), draw):
                writer.write_batch(with_filter(page))
        runs.append(map_run(directory / f"{number}.arrow", str(number), INDEX_SCHEMA))
        runs[-1].gather_filters(Disk(), directory)
    return runs


def _pages(rows: int, draw: np.random.Generator) -> Iterator[pa.RecordBatch]:
    pages = -(-rows // RANGE_ROWS)
    for page in range(pages):
        count = rows // pages
        low, high = (1 << 64) * page // pages, (1 << 64) * (page + 1) // pages - 1
        hi = np.unique(draw.integers(low, high, count, dtype=np.uint64, endpoint=True))
        others = [draw.integers(0, 1 << 63, len(hi), dtype=np.uint64) for _ in range(3)]
        yield pa.record_batch([hi, *others], schema=INDEX_SCHEMA)


def _batch(runs: list[Run], rows: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
    """Hashes in no order, a tenth of them known."""
    pages = [page for run in runs for page in run.pages]
    chosen = draw.choice(len(pages), rows // 10, p=np.array([page.num_rows for page in pages]) / sum(map(len, pages)))
    pairs = set()
    for number in chosen.tolist():
        place = int(draw.integers(pages[number].num_rows))
        pairs.add((pages[number].column("hi")[place].as_py(), pages[number].column("lo")[place].as_py()))
    hi = np.concatenate([np.array([pair[0] for pair in pairs], np.uint64), _random(rows - len(pairs), draw)])
    lo = np.concatenate([np.array([pair[1] for pair in pairs], np.uint64), _random(rows - len(pairs), draw)])
    order = draw.permutation(len(hi))
    return hi[order], lo[order], len(pairs)


def _random(rows: int, draw: np.random.Generator) -> np.ndarray:
    return draw.integers(0, (1 << 64) - 1, rows, dtype=np.uint64, endpoint=True)
