"""Merges of runs beside flushes: nothing counts twice, nothing is lost, and a stop need not wait for one."""

from __future__ import annotations

import errno
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ingest.merger import Merger
from ingest.scrubber import Scrubber
from store import ranges, tiers
from store.catalog import RunRow
from store.errors import DiskFullError
from store.files import Disk
from store.kinds import KINDS
from store.store import Store
from store.tiers import Tiers
from store.verify import verify
from tests.support.direct import Direct, open_store, record_of
from tests.support.waiting import until
from tests.unit.test_runs import advised


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """With four flushes of one record, so that a merge of each kind is due."""
    opened = open_store(tmp_path / "data")
    committer = Direct(opened)
    for number in range(4):
        flush(opened, committer, number)
    yield opened
    opened.close()


def flush(store: Store, committer: Direct, number: int) -> None:
    committer.take([record_of(number, destinationId="d", reference="r")])
    store.flush_once()


def names(store: Store) -> tuple[list[str], list[str]]:
    """Of the runs: what is in the view, and what is to be merged."""
    view = store._view
    return sorted(run.name for kind in KINDS for run in getattr(view, kind)), sorted(
        row.name for row in store.tiers.rows
    )


class Held:
    """`write_run` of merges, which waits where a page is due."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waits = threading.Event()
        self.goes_on = threading.Event()
        self._write: Callable[..., object] = tiers.write_run
        monkeypatch.setattr(tiers, "write_run", self)

    def __call__(
        self, disk: object, path: Path, kind: str, name: str, pages: Iterator[object], *rest: object
    ) -> object:
        def held() -> Iterator[object]:
            self.waits.set()
            assert self.goes_on.wait(20)
            yield from pages

        return self._write(disk, path, kind, name, held(), *rest)


def test_flushes_go_on_beside_a_merge(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their runs stand beside the merged one, in the view and for the next merge; summaries count each record once."""
    held = Held(monkeypatch)
    merging = threading.Thread(target=store.tiers.merge_once)
    merging.start()
    assert held.waits.wait(20)
    committer = Direct(store)
    for number in range(4, 7):
        flush(store, committer, number)
    assert not (store.root / "internal/staging").exists() or not list((store.root / "internal/staging").iterdir())
    held.goes_on.set()
    merging.join()
    in_view, known = names(store)
    assert in_view == known and len([name for name in known if name.startswith("internal/index/")]) == 4
    while store.tiers.merge_once():
        in_view, known = names(store)
        assert in_view == known
    assert len(known) <= 9
    answer = committer.take([record_of(number, destinationId="d", reference="r") for number in range(8)])
    assert (answer["accepted"], answer["duplicate"]) == (1, 7)
    store.flush_once()
    copy = store.root.with_name("copy")
    shutil.copytree(store.root, copy)
    assert verify(copy).differences == []
    again = open_store(copy)
    assert names(again)[0] == names(again)[1] == names(store)[0]
    again.close()


def test_smaller_merges_do_not_wait_for_the_end_of_a_large_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made between its pages, of its own kind too; rollups of the same range are never merged twice."""
    made: list[tuple[str, int]] = []
    committer = Direct(store)
    for number in range(4, 7):
        flush(store, committer, number)
    write: Callable[..., Any] = tiers.write_run
    flushed = iter(range(7, 15))

    def watched(disk: Disk, path: Path, kind: str, name: str, pages: Iterator[pa.RecordBatch], *rest: object) -> RunRow:
        def flushing() -> Iterator[pa.RecordBatch]:
            for page in pages:
                if kind == "index" and not any(kind == "index" for kind, _ in made):
                    for _, number in zip(range(4), flushed, strict=False):
                        flush(store, committer, number)
                yield page

        row: RunRow = write(disk, path, kind, name, flushing(), *rest)
        made.append((kind, row.rows))
        return row

    monkeypatch.setattr(tiers, "write_run", watched)
    while not any(kind == "index" for kind, _ in made):
        assert store.tiers.merge_once()
    sizes = [rows for kind, rows in made if kind == "index"]
    assert sizes == [4, 4, 7], made
    while store.tiers.merge_once():
        pass
    assert names(store)[0] == names(store)[1]
    copy = store.root.with_name("copy")
    shutil.copytree(store.root, copy)
    assert verify(copy).differences == []


def test_what_an_unfinished_merge_left_is_removed_behind_a_start(store: Store) -> None:
    """Not by the start: that would take a second for each 1.5 GB. First of all by the merger."""
    copy = store.root.with_name("copy")
    shutil.copytree(store.root, copy)
    kept = sorted(copy.glob("internal/*/*.arrow"))
    left = [copy / f"internal/{kind}/{4:020d}-{7:020d}.1-9.arrow" for kind in KINDS]
    for path in left:
        path.write_bytes(b"some of a run")
    again = open_store(copy)
    assert sorted(copy.glob("internal/*/*.arrow")) == kept
    assert len(list(copy.glob("internal/*/*.left"))) == len(left)
    flush(again, Direct(again), 4)
    again.tiers.merge_once()
    assert not list(copy.glob("internal/*/*.left"))
    while again.tiers.merge_once():
        pass
    assert names(again)[0] == names(again)[1]
    assert len(list(copy.glob("internal/*/*.arrow"))) == len(again.tiers.rows)
    again.close()
    assert verify(copy).differences == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how memory is read")
def test_runs_of_a_start_are_kept_once_they_were_read(store: Store) -> None:
    """And those of flushes and merges from the beginning."""
    copy = store.root.with_name("copy")
    shutil.copytree(store.root, copy)
    again = open_store(copy)
    first = again._view.index[0].name
    assert advised(copy / first) == ["rr"]
    flush(again, Direct(again), 4)
    assert advised(copy / again._view.index[-1].name) == [""]
    scrubber = Scrubber(again, 1e9)
    scrubber.start()
    until(lambda: advised(copy / first) == [""])
    scrubber.stop()
    again.close()


def test_what_an_unfinished_merge_left_goes_at_once_where_there_is_no_room(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start needs some itself."""
    copy = store.root.with_name("copy")
    shutil.copytree(store.root, copy)
    kept = sorted(copy.glob("internal/*/*"))
    left = copy / "internal/index" / f"{4:020d}-{7:020d}.1-9.arrow"
    left.write_bytes(b"some of a run")
    monkeypatch.setattr(tiers.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    again = open_store(copy)
    assert sorted(copy.glob("internal/*/*.arrow")) == [path for path in kept if path.suffix == ".arrow"]
    assert not list(copy.glob("internal/*/*.left"))
    again.close()


def test_a_merge_is_given_up_at_a_stop(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has written is removed, and a later merge makes it anew."""
    before = names(store)
    on_disk = sorted(store.root.glob("internal/*/*.arrow"))
    held = Held(monkeypatch)
    merger = Merger(store)
    merger.start()
    assert held.waits.wait(20)
    threading.Timer(0.05, held.goes_on.set).start()
    merger.stop()
    assert not merger.alive and merger.problem is None
    assert names(store) == before
    assert sorted(store.root.glob("internal/*/*.arrow")) == on_disk
    again = Tiers(store.disk, store.root, store._catalog, store.tiers.rows, store)
    assert again.merge_once()


def due(store: Store) -> bool:
    return any(kind.to_merge([row for row in store.tiers.rows if row.kind == name]) for name, kind in KINDS.items())


def test_the_merger_merges_at_its_start_and_after_a_flush(store: Store) -> None:
    """All that is due."""
    merger = Merger(store)
    assert due(store)
    merger.start()
    until(lambda: len(store.tiers.rows) == 3)
    committer = Direct(store)
    for number in range(4, 8):
        flush(store, committer, number)
    assert due(store)
    merger.flushed()
    until(lambda: not due(store))
    merger.stop()


def test_the_merger_copies_the_filters_of_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every run that has several pages. An error that nobody expected stops the store."""
    monkeypatch.setattr(ranges, "RANGE_ROWS", 4)
    store = open_store(tmp_path / "data")
    Direct(store).take([record_of(number, reference=f"r-{number}") for number in range(50)])
    store.flush_once()
    store.close()
    store = open_store(tmp_path / "data")
    runs = [*store._view.index, *store._view.summaries]
    assert all(len(run.pages) > 1 and run._filters is run._written for run in runs)
    merger = Merger(store)
    merger.start()
    until(lambda: all(run._filters is not run._written for run in runs))
    merger.stop()
    monkeypatch.setattr(Tiers, "gather_filters", lambda self: 1 // 0)
    merger = Merger(store)
    merger.start()
    until(lambda: not merger.alive)
    assert isinstance(store.failure, ZeroDivisionError)
    store.close()


def test_a_full_disk_is_told_and_tried_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any other error stops the store."""
    write = tiers.write_run

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tiers, "write_run", full)
    with pytest.raises(DiskFullError, match="to merge runs of the index"):
        store.tiers.merge_once()
    with monkeypatch.context() as patch:
        patch.setattr(tiers.shutil, "disk_usage", lambda root: shutil._ntuple_diskusage(1 << 40, 1 << 40, 100))
        patch.setattr(tiers, "write_run", lambda *arguments: pytest.fail("what there is no room for is not begun"))
        with pytest.raises(DiskFullError, match="to merge runs of the index"):
            store.tiers.merge_once()
    merger = Merger(store)
    merger.start()
    until(lambda: merger.problem is not None)
    assert merger.problem is not None and "no room" in merger.problem
    monkeypatch.setattr(tiers, "write_run", write)
    until(lambda: len(store.tiers.rows) == 3 and merger.problem is None)
    monkeypatch.setattr(Tiers, "merge_once", lambda self: 1 // 0)
    merger.flushed()
    until(lambda: not merger.alive)
    assert merger.problem == "the merge failed: integer division or modulo by zero"
    assert isinstance(store.failure, ZeroDivisionError)
    merger.stop()
