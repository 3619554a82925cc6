"""The flusher: what is hot goes into Parquet, and at a stop all of it."""

from __future__ import annotations

import threading
from pathlib import Path

from ingest.flusher import Flusher
from tests.support.direct import Direct, open_store, record_of


def test_a_stop_flushes_what_was_committed_beside_a_flush(tmp_path: Path) -> None:
    """The flush under way does not have it; nothing else comes to write it."""
    store = open_store(tmp_path / "data")
    committer = Direct(store)
    flushes, goes_on = threading.Event(), threading.Event()
    flush_once = store.flush_once

    def held() -> int:
        rows = flush_once()
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
