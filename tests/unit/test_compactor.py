"""The compactor: a thread that stands behind everything else, and says what keeps it from its work."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from ingest.compactor import Compactor
from store.compaction import COMPACTION
from store.errors import DiskFullError
from store.files import Disk
from store.store import Store
from tests.support.direct import START_US, Direct, open_store, record_of
from tests.support.service import wait_until


def flushed_twice(root: Path, disk: Disk | None = None) -> Store:
    """A store with two files of one day, which are due."""
    store = open_store(root, disk)
    committer = Direct(store)
    for number in (1, 2):
        committer.take([record_of(number, time=START_US)])
        store.flush_once()
    return store


def ended() -> bool:
    """Whether the thread has ended."""
    return not any(thread.name == "compactor" for thread in threading.enumerate())


def test_it_compacts_what_is_due_and_ends_when_it_is_told(tmp_path: Path) -> None:
    """Two files become one without anybody asking."""
    store = flushed_twice(tmp_path / "data")
    compactor = Compactor(store, 0.01)
    compactor.start()
    wait_until(lambda: len(store.files) == 1)
    compactor.stop()
    assert ended()
    assert compactor.problem is None
    store.close()


@pytest.mark.parametrize("is_wanted", [True, False])
def test_what_a_compaction_left_is_removed_after_the_start_and_not_by_it(tmp_path: Path, is_wanted: bool) -> None:
    """Also where nothing is to be compacted any more; a start does not wait for it."""
    store = flushed_twice(tmp_path / "data")
    assert store.compaction.run_once() == 1
    store.close()
    store = open_store(tmp_path / "data")
    (old,) = (tmp_path / "data" / COMPACTION).glob("date=*")
    assert len(list(old.iterdir())) == 2
    compactor = Compactor(store, 60.0, is_wanted=is_wanted)
    compactor.start()
    wait_until(lambda: not old.exists())
    compactor.stop()
    assert len(store.files) == 1
    assert store.compaction.counters.retired == 0
    store.close()


class Stopping(Disk):
    """A disk that stops the compaction at the first directory that is removed."""

    store: Store

    def remove_directory(self, path: Path) -> None:
        """Removed, and told to stop."""
        super().remove_directory(path)
        self.store.compaction.stop()


def test_a_stop_does_not_wait_until_everything_is_removed(tmp_path: Path) -> None:
    """The next start finds the rest."""
    store = flushed_twice(tmp_path / "data")
    store.close()
    left = [tmp_path / "data" / COMPACTION / f"date=2024-03-0{number}.old" for number in range(1, 4)]
    for directory in left:
        directory.mkdir(parents=True)
    disk = Stopping(fsync=False)
    disk.store = open_store(tmp_path / "data", disk)
    disk.store.compaction.remove_retired()
    assert [directory.exists() for directory in left] == [False, True, True]
    disk.store.close()
    store = open_store(tmp_path / "data")
    store.compaction.remove_retired()
    assert [directory.exists() for directory in left] == [False, False, False]
    store.close()


class NoExchange(Disk):
    """A file system that cannot exchange two names."""

    def exchange(self, first: Path, second: Path) -> None:
        """Refused."""
        raise OSError(errno.EINVAL, "Invalid argument", str(first))


def test_where_nothing_can_be_exchanged_it_says_so_and_everything_else_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning; no thread, no failure."""
    store = flushed_twice(tmp_path / "data", NoExchange(fsync=False))
    compactor = Compactor(store, 0.01)
    compactor.start()
    wait_until(ended)
    assert caplog.text.count("partitions are not compacted") == 1
    assert store.failure is None
    assert len(store.files) == 2
    store.close()


def test_what_a_probe_leaves_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its directories cannot be removed afterwards: the next probe does it, and partitions are compacted."""
    store = flushed_twice(tmp_path / "data")
    remove = store.compaction._remove
    calls = 0

    def failing(path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(errno.EIO, "Input/output error")
        remove(path)

    monkeypatch.setattr(store.compaction, "_remove", failing)
    assert store.compaction.probe() is None and calls == 3
    assert store.compaction.probe() is None
    assert store.compaction.run_once() == 1
    store.close()


def test_without_room_it_says_so_and_tries_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The problem is told until a round has room."""
    store = flushed_twice(tmp_path / "data")
    run_once = store.compaction.run_once
    has_room = threading.Event()

    def limited() -> int:
        if not has_room.is_set():
            raise DiskFullError("no room")
        return run_once()

    monkeypatch.setattr(store.compaction, "run_once", limited)
    compactor = Compactor(store, 0.01)
    compactor.start()
    wait_until(lambda: compactor.problem == "no room")
    has_room.set()
    wait_until(lambda: len(store.files) == 1)
    compactor.stop()
    assert compactor.problem is None
    store.close()


class FailingSync(Disk):
    """A disk whose syncs of `records/` fail after an exchange."""

    exchanged = False

    def exchange(self, first: Path, second: Path) -> None:
        """Remember it."""
        super().exchange(first, second)
        self.exchanged = second.parent.name == "records"

    def sync_directory(self, path: Path) -> None:
        """Refused where it counts."""
        if self.exchanged and path.name == "records":
            raise OSError(errno.EIO, "Input/output error", str(path))


def test_a_sync_that_fails_after_an_exchange_stops_the_store(tmp_path: Path) -> None:
    """Nobody knows what is kept; the next start finds out, and nothing is lost."""
    store = flushed_twice(tmp_path / "data", FailingSync(fsync=False))
    compactor = Compactor(store, 0.01)
    compactor.start()
    wait_until(lambda: store.failure is not None)
    wait_until(ended)
    assert "could not be synced" in str(store.failure)
    store.close()
    store = open_store(tmp_path / "data")
    assert sum(file.rows for file in store.files) == 2
    assert store.find("id-1") is not None
    store.close()
