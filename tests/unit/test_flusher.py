"""The flusher: what is hot goes into Parquet, and at a stop all of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest.committer import CommitterSettings
from ingest.flusher import Flusher
from store import flush
from tests.support.direct import Direct, open_store, record_of


def test_a_stop_flushes_what_was_committed_beside_a_flush(tmp_path: Path) -> None:
    """The flush under way does not have it; nothing else comes to write it."""
    store = open_store(tmp_path / "data")
    committer = Direct(store)
    flushes, goes_on = threading.Event(), threading.Event()
    flush_once = store.flush_once

    def held(*waited: Callable[[], bool]) -> int:
        rows = flush_once(*waited)
        flushes.set()
        assert goes_on.wait(20)
        return rows

    store.flush_once = held  # type: ignore[method-assign]
    flusher = Flusher(store, 60.0, 1, 1 << 30)
    flusher.start()
    committer.take([record_of(1)])
    flusher.committed()
    assert flushes.wait(20)
    committer.take([record_of(2)])
    stopping = threading.Thread(target=flusher.stop)
    stopping.start()
    assert flusher._stopping.wait(20)
    goes_on.set()
    stopping.join(20)
    assert not flusher.alive
    assert store.flushed == store.seq == 2
    store.close()


class Beside:
    """How many calls are under way at most."""

    def __init__(self) -> None:
        self.most = 0
        self._now: list[str] = []
        self._met = threading.Condition()

    def watched(self, action: Callable[..., Any], expected: int) -> Callable[..., Any]:
        """The function, which first waits for so many to be under way, or for a moment."""

        def call(*given: Any) -> Any:
            with self._met:
                self._now.append("")
                self.most = max(self.most, len(self._now))
                self._met.notify_all()
                self._met.wait_for(lambda: self.most >= expected, 0.1 if expected == 2 else 20)
            try:
                return action(*given)
            finally:
                with self._met:
                    self._now.pop()

        return call


@pytest.mark.parametrize(("waits", "most"), [(True, 2), (False, 4)])
def test_a_flush_keeps_to_one_core_while_clients_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, waits: bool, most: int
) -> None:
    """Its files and runs are made one at a time; else several beside each other."""
    monkeypatch.setattr(flush, "_LARGE_ROWS", 1)
    beside = Beside()
    pages = flush._pages

    def watched(*given: Any) -> Iterator[Any]:
        for page in list(pages(*given)):
            yield beside.watched(lambda page=page: page, most)()

    for name in ("write_partition", "describe"):
        monkeypatch.setattr(flush, name, beside.watched(getattr(flush, name), most))
    monkeypatch.setattr(flush, "_pages", watched)
    store = open_store(tmp_path / "data")
    committer = Direct(store)
    committer.take([record_of(number) for number in range(1, 30)])
    flusher = Flusher(store, 60.0, 1, 1 << 30, is_waited_for=lambda: waits)
    assert flusher.run_once() == 29
    assert beside.most == 1 if waits else beside.most >= most
    store.close()


def test_a_flush_takes_its_time_only_where_it_has_it(tmp_path: Path) -> None:
    """While clients wait, and hot rows are not so many that these wait for the flush itself."""
    store = open_store(tmp_path / "data")
    committer = Direct(store, CommitterSettings(hot_rows_soft=10, hot_rows_hard=20))
    assert not committer.wants_cores
    committer.take([record_of(number) for number in range(1, 15)])
    assert committer.wants_cores
    committer.take([record_of(15)])
    assert store.hot_rows == 15 and not committer.wants_cores
    store.close()
