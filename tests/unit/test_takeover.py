"""A merged run takes over while it is written, a part at a time: at every step each row is there, and once."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import re
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from store import ranges, takeover, tiers
from store.errors import DiskFullError
from store.files import Disk
from store.flush import write_run
from store.index import INDEX_SCHEMA, entries, find, sorted_entries
from store.ranges import merge_ranges
from store.runs import HASHES, Run, map_run, schema_in_file
from store.store import Store
from store.takeover import Takeover
from store.verify import verify
from tests.support.direct import Direct, open_store, record_of
from tests.support.model import Model
from tests.unit.test_runs import held


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of 64 to 128 rows, parts of 16 KiB, and no run that is small."""
    monkeypatch.setattr(takeover, "_CUT_ROWS", 0)
    monkeypatch.setattr(takeover, "_PATIENCE_S", 0.01)
    monkeypatch.setattr(ranges, "RANGE_ROWS", 128)
    monkeypatch.setattr(takeover, "_PART_BYTES", 16 << 10)


class Merge:
    """Of runs in files, given as what looks into them; `steps` has what stood after each."""

    def __init__(self, old: dict[Path, Run], path: Path, each: Callable[[], None] = lambda: None) -> None:
        self.steps: list[Sequence[Run]] = []
        self.path = path
        self._each = each
        self._reading = {file: map_run(file, file.name, INDEX_SCHEMA) for file in old}
        self.takeover = Takeover(Disk(), path, "new", schema_in_file(INDEX_SCHEMA), old, self._reading, self._exchange)

    def _exchange(self, standing: Sequence[Run]) -> None:
        self.steps.append(standing)
        self._each()

    def write(self, pages: int = 1 << 30) -> None:
        """So many of the pages, the file of which is not closed then."""
        merged = itertools.islice(merge_ranges(list(self._reading.values()), sorted_entries), pages)
        write_run(Disk(fsync=False), self.path, "index", "new", merged, (0, 0), self.takeover.written)

    def finish(self) -> Run:
        run = map_run(self.path, "new", INDEX_SCHEMA)
        self.takeover.finish(run)
        return run


def written(path: Path, pieces: Sequence[Run]) -> Run:
    write_run(Disk(fsync=False), path, "index", path.name, merge_ranges(pieces, sorted_entries), (0, 0))
    return map_run(path, path.name, INDEX_SCHEMA)


def old_runs(directory: Path, rows: int = 4_000) -> dict[Path, Run]:
    """Three runs of rows whose word is their number, some of which share hashes."""
    chance = np.random.Generator(np.random.Philox(rows))
    hashes = chance.integers(0, 1 << 64, rows, np.uint64)
    old = {}
    for number in range(3):
        hi = chance.choice(hashes, rows, replace=True)
        words = np.arange(rows, dtype=np.uint64) + np.uint64(rows * number)
        old[directory / f"old-{number}"] = written(directory / f"old-{number}", [entries(hi, hi, words, hi)])
    return old


def found(standing: Sequence[Run], hi: Any) -> list[int]:
    return sorted(find(standing, hi, hi).seq.tolist())


def asked_of(old: dict[Path, Run]) -> Any:
    return np.unique(np.concatenate([page for run in old.values() for page in run.hi]))


def test_at_every_step_each_row_is_found_once(tmp_path: Path) -> None:
    """While the file is written, and also by whoever goes on with what stood before."""
    old = old_runs(tmp_path)
    asked = asked_of(old)
    wanted = found(list(old.values()), asked)
    assert len(wanted) == 12_000

    def each() -> None:
        for standing in merge.steps[-2:]:
            assert found(standing, asked) == wanted
            assert sum(run.rows for run in standing) == 12_000

    merge = Merge(old, tmp_path / "new", each)
    merge.write()
    new = merge.finish()
    assert len(merge.steps) >= 16
    assert merge.steps[-1] == [new]
    of_new = [sum(run.rows for run in standing if run.name == "new") for standing in merge.steps]
    assert all(before < after for before, after in zip(of_new, of_new[1:], strict=False))
    assert old_sizes(old) == [4_000] * 3


def old_sizes(old: dict[Path, Run]) -> list[int]:
    """Rows of the files of runs, which a merge must leave as they are."""
    return [map_run(path, path.name, INDEX_SCHEMA).rows for path in old]


def test_a_merge_that_is_given_up_leaves_what_was_there(tmp_path: Path) -> None:
    """In the middle, or before anything had taken over."""
    old = old_runs(tmp_path)
    asked = asked_of(old)
    wanted = found(list(old.values()), asked)
    merge = Merge(old, tmp_path / "new")
    merge.write(pages=80)
    assert len(merge.steps) > 5
    assert merge.takeover.undo() == [run.reader for run in merge.steps[-2] if run.name == "new"]
    assert [run.name for run in merge.steps[-1]] == ["old-0", "old-1", "old-2"]
    assert found(merge.steps[-1], asked) == wanted
    early = Merge(old, tmp_path / "early")
    early.write(pages=1)
    assert early.takeover.undo() == []
    assert early.steps == []


def test_a_bound_within_a_page_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs whose pages end elsewhere are replaced in fewer steps, at last in one."""
    old = old_runs(tmp_path)
    monkeypatch.setattr(ranges, "RANGE_ROWS", 2_000)
    coarse = {tmp_path / "coarse": written(tmp_path / "coarse", list(old.values()))}
    monkeypatch.setattr(ranges, "RANGE_ROWS", 128)
    assert len(coarse[tmp_path / "coarse"].pages) == 8
    merge = Merge(coarse, tmp_path / "new")
    merge.write()
    assert len(merge.steps) == 8
    monkeypatch.setattr(ranges, "RANGE_ROWS", 1 << 20)
    whole = {tmp_path / "whole": written(tmp_path / "whole", list(old.values()))}
    monkeypatch.setattr(ranges, "RANGE_ROWS", 128)
    merge = Merge(whole, tmp_path / "newer")
    merge.write()
    assert len(merge.steps) == 1
    new = merge.finish()
    assert merge.steps[1:] == [[new]]


def test_small_runs_are_cut_within_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not stand in the way."""
    old = old_runs(tmp_path)
    asked = asked_of(old)
    wanted = found(list(old.values()), asked)
    monkeypatch.setattr(ranges, "RANGE_ROWS", 1 << 20)
    old[tmp_path / "one"] = written(tmp_path / "one", [old.pop(tmp_path / "old-1")])
    monkeypatch.setattr(ranges, "RANGE_ROWS", 128)
    assert len(old[tmp_path / "one"].pages) == 1
    monkeypatch.setattr(takeover, "_CUT_ROWS", 4_000)

    def each() -> None:
        assert found(merge.steps[-1], asked) == wanted

    merge = Merge(old, tmp_path / "new", each)
    merge.write()
    assert len(merge.steps) >= 16


def test_what_takes_over_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that could not take it would say so before anybody looks it up."""
    old = old_runs(tmp_path)
    synced: list[int] = []
    monkeypatch.setattr(Disk, "sync_file", lambda self, path: synced.append(path.stat().st_size))

    def each() -> None:
        sizes = [len(run.reader) for run in merge.steps[-1] if run.name == "new" and isinstance(run.reader, mmap.mmap)]
        assert sum(sizes) >= synced[-1] == merge.path.stat().st_size

    merge = Merge(old, tmp_path / "new", each)
    merge.write()
    assert len(merge.steps) >= 16


def test_what_reads_a_file_lives_as_long_as_a_part_of_it(tmp_path: Path) -> None:
    """Cut between pages or within one."""
    run = next(iter(old_runs(tmp_path).values()))
    first = int(run.hi[3][0])
    assert run.is_cut_at(first) and run.is_cut_at(0) and run.is_cut_at(int(run.hi[-1][-1]) + 1)
    assert not run.is_cut_at(int(run.hi[3][1]))
    assert run.part(0, first).rows + run.part(first, HASHES).rows == run.rows
    assert run.part(0, 0).rows == 0
    assert run.part(first, first + 1).rows + run.part(first + 1, HASHES).rows == run.part(first, HASHES).rows
    watched = weakref.ref(run.reader)
    parts = [run.part(first, HASHES), run.part(first + 1, HASHES)]
    del run
    while parts:
        assert watched() is not None
        asked = parts[0].hi[0][:5].copy()
        assert len(find(parts[:1], asked, asked).seq) >= 5
        del parts[0]
    assert watched() is None


def test_what_somebody_looks_into_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before memory is given back: into what stood before the first step, and before the last one."""
    waited: list[list[bool]] = []

    def wait(self: Takeover) -> None:
        waited.append([run() is not None for run in self._looked_into])
        self._looked_into.clear()
        if len(waited) == 2:
            merge.steps.clear()

    monkeypatch.setattr(Takeover, "_wait", wait)
    old = old_runs(tmp_path)
    looked_into = old[tmp_path / "old-1"]
    merge = Merge(old, tmp_path / "new")
    del old
    merge.write()
    assert looked_into.rows
    assert waited[:4] == [[False, True, False], [True] * 3, [False] * 3, [True] * 3]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what it has in memory")
def test_what_is_forgotten_is_not_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the file, and no more; whoever looks all the same finds it."""
    monkeypatch.setattr(ranges, "RANGE_ROWS", 1 << 12)
    path, half = tmp_path / "run", 1 << 63
    hi = np.sort(np.random.Generator(np.random.Philox(3)).integers(0, HASHES, 500_000, np.uint64))
    written(path, [entries(hi, hi, hi, hi)])
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if held(path).mean() > 0.1:
        pytest.skip("a file system that lives in memory")
    run = map_run(path, path.name, INDEX_SCHEMA)
    run.touch()
    assert held(path).mean() > 0.99
    assert run.is_cut_at(half)
    run.forget(path, 0, half)
    of_file = held(path)
    middle = len(of_file) // 2
    assert of_file[: middle - 600].mean() < 0.05 and of_file[middle + 600 :].all()
    run.touch()
    assert held(path).mean() > 0.99
    run.forget(path, 0, half)
    assert sum(piece.num_rows for piece in run.between(half, HASHES)) == np.count_nonzero(hi >= np.uint64(half))
    assert held(path)[: middle - 600].mean() < 0.05  # a merge that goes on does not read it again
    assert len(find([run], hi[:1_000], hi[:1_000]).seq) == 1_000


def test_nobody_is_waited_for_for_ever(tmp_path: Path) -> None:
    """A question may take minutes, and a merge must not."""
    old = old_runs(tmp_path)
    merge = Merge(old, tmp_path / "new")
    began = time.monotonic()
    merge.takeover._wait()
    assert 0.01 <= time.monotonic() - began < 5.0


def held_files(root: Path) -> str:
    """What this process has open or mapped below a directory."""
    opened = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    mapped = Path("/proc/self/maps").read_text().splitlines()
    return "\n".join(line for line in (*opened, *mapped) if str(root) in line)


def fail_at(page: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merges of an index find the disk full at this page."""
    write = tiers.write_run

    def failing(disk: Disk, path: Path, kind: str, name: str, pages: Any, *rest: Any) -> Any:
        def some() -> Any:
            for number, found in enumerate(pages):
                if kind == "index" and number == page:
                    raise OSError(errno.ENOSPC, "No space left on device")
                yield found

        return write(disk, path, kind, name, some(), *rest)

    monkeypatch.setattr(tiers, "write_run", failing)


def test_commits_between_the_steps_see_all_that_was_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old ids are duplicates at each step, changed ones conflicts, new ones have the right summary: like the model."""
    store, model = open_store(tmp_path / "data"), Model()
    monkeypatch.setattr(takeover, "_PART_BYTES", 1 << 10)
    committer = Direct(store)
    given = 0

    def record(number: int, **changes: Any) -> Any:
        return record_of(number, reference=f"reference {number % 900}", **changes)

    def take(*records: Any) -> None:
        answer = committer.take(list(records))
        assert answer == model.take(list(records))

    for _ in range(4):
        take(*(record(number) for number in range(given, given + 600)))
        given += 600
        store.flush_once()
    exchange = Store.exchange_runs
    steps = {"index": 0, "summaries": 0, "rollups": 0}

    def exchanged(self: Store, kind: str, gone: Any, standing: Any) -> None:
        nonlocal given
        exchange(self, kind, gone, standing)
        steps[kind] += 1
        old = (steps[kind] * 97) % 2_400
        take(record(old), record(given), record(old + 1, unit="other"))
        given += 1

    monkeypatch.setattr(Store, "exchange_runs", exchanged)
    with monkeypatch.context() as patch:
        fail_at(30, patch)
        with pytest.raises(DiskFullError):
            while store.tiers.merge_once():
                pass
    assert steps["index"] >= 5
    assert all(row.name in {run.name for run in store._view.index} for row in store.tiers.rows if row.kind == "index")
    assert len(list((store.root / "internal/index").iterdir())) == 4
    if sys.platform == "linux":
        held = held_files(store.root)
        assert ".arrow (deleted)" not in held, "until it is closed what was written takes room"
        copied = [run for run in (*store._view.index, *store._view.summaries) if run._filters is not run._written]
        assert len(set(re.findall(r"\S+\.left(?= \(deleted\))", held))) == len(copied)
    while store.tiers.merge_once():
        pass
    assert steps["index"] >= 8 and steps["summaries"] >= 8
    take(*(record(number) for number in range(given)))
    store.flush_once()
    store.close()
    assert verify(tmp_path / "data").differences == []
