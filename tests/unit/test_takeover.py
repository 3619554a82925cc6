"""A merged run takes over a part of the hashes at a time: at every step each row is there, and once."""

from __future__ import annotations

import os
import sys
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from store import runs, takeover
from store.files import Disk
from store.flush import write_run
from store.index import INDEX_SCHEMA, entries, find, sorted_entries
from store.runs import HASHES, Run, map_run, merge_ranges
from store.store import Store
from store.verify import verify
from tests.support.direct import Direct, open_store, record_of
from tests.support.model import Model
from tests.unit.test_runs import held


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of 64 to 128 rows, parts of 16 KiB, and no run that is small."""
    monkeypatch.setattr(takeover, "_CUT_ROWS", 0)
    monkeypatch.setattr(takeover, "_PATIENCE_S", 0.01)
    monkeypatch.setattr(runs, "RANGE_ROWS", 128)
    monkeypatch.setattr(takeover, "_PART_BYTES", 16 << 10)


def written(path: Path, pieces: Sequence[Run]) -> Run:
    write_run(Disk(fsync=False), path, "index", path.name, merge_ranges(pieces, sorted_entries), (0, 0))
    return map_run(path, path.name, INDEX_SCHEMA)


def old_and_new(directory: Path, rows: int = 4_000) -> tuple[dict[Path, Run], Run]:
    """Three runs of rows whose word is their number, some of which share hashes, and what they are merged into."""
    chance = np.random.Generator(np.random.Philox(rows))
    hashes = chance.integers(0, 1 << 64, rows, np.uint64)
    old = {}
    for number in range(3):
        hi = chance.choice(hashes, rows, replace=True)
        words = np.arange(rows, dtype=np.uint64) + np.uint64(rows * number)
        old[directory / f"old-{number}"] = written(directory / f"old-{number}", [entries(hi, hi, words, hi)])
    return old, written(directory / "new", list(old.values()))


def found(standing: Sequence[Run], hi: Any) -> list[int]:
    return sorted(find(standing, hi, hi).seq.tolist())


def test_at_every_step_each_row_is_found_once(tmp_path: Path) -> None:
    """Also by whoever goes on with what stood before."""
    old, new = old_and_new(tmp_path)
    asked = np.unique(np.concatenate([page for run in old.values() for page in run.hi]))
    wanted = found(list(old.values()), asked)
    assert len(wanted) == 12_000
    steps: list[list[Run]] = []
    for standing in takeover.takeover(old, new):
        assert found(standing, asked) == wanted
        assert sum(run.rows for run in standing) == 12_000
        if steps:
            assert found(steps[-1], asked) == wanted
        steps.append(standing)
    assert len(steps) > 16
    assert steps[-1] == [new]
    of_new = [sum(run.rows for run in standing if run.name == "new") for standing in steps]
    assert all(before < after for before, after in zip(of_new, of_new[1:], strict=False))


def test_a_bound_within_a_page_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose pages end elsewhere is replaced in fewer steps, at last in one."""
    old, new = old_and_new(tmp_path)
    monkeypatch.setattr(runs, "RANGE_ROWS", 2_000)
    coarse = written(tmp_path / "coarse", list(old.values()))
    assert len(coarse.pages) == 8
    steps = [*takeover.takeover({tmp_path / "coarse": coarse}, new)]
    assert len(steps) == 9
    monkeypatch.setattr(runs, "RANGE_ROWS", 1 << 20)
    whole = written(tmp_path / "one", list(old.values()))
    assert [*takeover.takeover({tmp_path / "one": whole}, new)][1:] == [[new]]


def test_small_runs_are_cut_within_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not stand in the way."""
    old, new = old_and_new(tmp_path)
    asked = np.unique(np.concatenate([page for run in old.values() for page in run.hi]))
    wanted = found(list(old.values()), asked)
    monkeypatch.setattr(runs, "RANGE_ROWS", 1 << 20)
    old[tmp_path / "one"] = written(tmp_path / "one", [old.pop(tmp_path / "old-1")])
    assert len(old[tmp_path / "one"].pages) == 1
    monkeypatch.setattr(takeover, "_CUT_ROWS", 4_000)
    steps = 0
    for standing in takeover.takeover(old, new):
        assert found(standing, asked) == wanted
        steps += 1
    assert steps > 16


def test_what_reads_a_file_lives_as_long_as_a_part_of_it(tmp_path: Path) -> None:
    """Cut between pages or within one."""
    run = next(iter(old_and_new(tmp_path)[0].values()))
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
    monkeypatch.setattr(takeover, "_wait", lambda runs: waited.append([run() is not None for run in runs]))
    old, new = old_and_new(tmp_path)
    looked_into = old[tmp_path / "old-1"]
    steps = takeover.takeover(old, new)
    del old
    before, first, second = next(steps), next(steps), next(steps)
    assert len(before) == 3 and len(first) == len(second) == 4
    assert waited == [[False, True, False, True, True, True]]
    assert looked_into.rows
    del before, first
    next(steps)
    next(steps)
    assert waited[1:] == [[False] * 4, [True] * 4]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what it has in memory")
def test_what_is_forgotten_is_not_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the file, and no more; whoever looks all the same finds it."""
    monkeypatch.setattr(runs, "RANGE_ROWS", 1 << 12)
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
    run.forget(path, 0, half)
    of_file = held(path)
    middle = len(of_file) // 2
    assert of_file[: middle - 600].mean() < 0.05 and of_file[middle + 600 :].all()
    run.touch(0, half)
    assert held(path).mean() > 0.99
    run.forget(path, 0, half)
    assert len(find([run], hi[:1_000], hi[:1_000]).seq) == 1_000


def test_nobody_is_waited_for_for_ever(tmp_path: Path) -> None:
    """A question may take minutes, and a merge must not."""
    old, _ = old_and_new(tmp_path)
    began = time.monotonic()
    takeover._wait([*map(weakref.ref, old.values())])
    assert 0.01 <= time.monotonic() - began < 5.0


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
    while store.tiers.merge_once():
        pass
    assert steps["index"] >= 8 and steps["summaries"] >= 8
    take(*(record(number) for number in range(given)))
    store.flush_once()
    store.close()
    assert verify(tmp_path / "data").differences == []
