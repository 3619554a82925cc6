"""Removed runs: their bytes are given back where they were removed, not by whoever reads them last."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from store.files import Disk
from store.flush import write_run
from store.index import INDEX_SCHEMA, entries, find
from store.runs import Run, map_run
from store.unlinked import Unlinked
from tests.support.direct import Direct, open_store, record_of


def written(path: Path) -> Run:
    """A run of a thousand hashes in a file."""
    hi = np.arange(1_000, dtype=np.uint64)
    write_run(Disk(fsync=False), path, "index", "run", entries(hi, hi, hi, hi).pages, (0, 0))
    return map_run(path, "run", INDEX_SCHEMA)


def open_here(path: Path) -> bool:
    """Whether this process holds a handle of the removed file."""
    links = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
    return any(os.readlink(link) == f"{path} (deleted)" for link in links if link.is_symlink())


def test_a_removed_run_is_held_until_nobody_reads_it(tmp_path: Path) -> None:
    """Its name is gone at once, what it holds can be found, and then its handle is closed."""
    unlinked = Unlinked(Disk(fsync=False))
    run = written(tmp_path / "run")
    unlinked.remove({tmp_path / "run": [run]})
    assert not (tmp_path / "run").exists()
    assert unlinked.free() == 1
    asked = np.array([5], np.uint64)
    assert find([run], asked, asked).seq.tolist() == [5]
    assert open_here(tmp_path / "run")
    del run
    assert unlinked.free() == 0
    assert not open_here(tmp_path / "run")


def test_merged_runs_are_held_until_the_next_merge_or_the_end(tmp_path: Path) -> None:
    """Not by the view that commits look into."""
    store = open_store(tmp_path / "data")
    committer = Direct(store)
    for number in range(4):
        committer.take([record_of(number)])
        store.flush_once()
    old = [tmp_path / "data" / row.name for row in store.tiers.rows if row.kind == "index"]
    assert store.tiers.merge_once()
    assert len(old) == 4
    assert [path.exists() for path in old] == [False] * 4
    assert all(open_here(path) for path in old)
    while store.tiers.merge_once():
        pass
    assert not any(open_here(path) for path in old)
    store.close()
