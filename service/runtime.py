"""A lake in this process: the store with all that works on it, started and stopped in order."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from ingest.committer import Committer, CommitterSettings
from ingest.compactor import Compactor
from ingest.decode import Limits
from ingest.flusher import Flusher
from ingest.inbox import Inbox, InboxSettings
from ingest.intake import Intake
from ingest.merger import Merger
from ingest.record import Rules as RecordRules
from ingest.scrubber import Scrubber
from outbox.feed import Feed, Source
from outbox.forwarder.forwarder import Forwarder
from outbox.forwarder.status import SinkStatus
from outbox.news import News
from outbox.remake import Origin
from service.config import Config, retention_s
from service.health import health_of
from service.metrics import Metrics
from store.compaction import CompactionCounters, CompactionSettings
from store.engine import Engine
from store.journal import Rules as AlertRules
from store.letters import Letters
from store.log import FEEDS
from store.memory import bytes_of, share_memory
from store.recovery import committed
from store.retention import Retention
from store.snapshot import Snapshot
from store.store import Store, StoreSettings

__all__ = ["Lake", "Reader"]

logger = logging.getLogger("oncelake.service")

_GRACE_S = 5.0
"""At a stop, for the files under way to be finished; the next start goes on with the others."""


class Reader:
    """What the API reads from (`api.ports.Reader`)."""

    def __init__(self, lake: Lake, engine: Engine) -> None:
        self._lake = lake
        self.engine = engine
        self.news = lake.news
        self.letters = lake.letters
        self.metrics = lake.metrics.text

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """What a read sees, for as long as it reads."""
        yield self._lake.store.snapshot()

    def find(self, record_id: str) -> pa.Table | None:
        """The stored record with this id (one row), or None."""
        return self._lake.store.find(record_id)

    def feed(self, name: str) -> Feed:
        """The feed of this name."""
        return self._lake.feeds[name]

    def health(self) -> dict[str, dict[str, object]]:
        """The state of each component; `status` is "ok" or says what is wrong."""
        return self._lake.health()


class Lake:
    """Everything of one data directory but its HTTP face."""

    def __init__(self, config: Config) -> None:
        self.config = config
        store, ingest = config.store, config.ingest
        root = Path(store.data_dir)
        compaction = CompactionSettings(bytes_of(store.compact_memory), store.compact_grace_s, store.compact_rest_s)
        settings = StoreSettings(
            root, store.fsync, config.outbox.segment_bytes, _retention_us(config), compaction=compaction
        )
        share_memory()
        self.store = _opened(settings)
        self.metrics = Metrics(self)
        self.news = News()
        self.letters = Letters(root, lambda: committed(self.store.state, "rejected"))
        self.feeds = {name: self.feed(name) for name in FEEDS}
        self.scrubber = Scrubber(self.store, store.scrub_interval_s)
        self.compactor = Compactor(self.store, store.flush_interval_s, is_wanted=store.compact)
        alerts = config.alerts
        self.committer = Committer(
            self.store,
            AlertRules(alerts.threshold, dict(alerts.by_unit), dict(alerts.by_destination)),
            CommitterSettings(
                queue_batches=ingest.queue_batches,
                queue_rows=ingest.queue_records,
                atomic_rows=ingest.atomic_records,
                hot_rows_soft=2 * store.flush_rows,
                hot_rows_hard=3 * store.flush_rows,
                hot_bytes_soft=2 * store.flush_bytes,
                hot_bytes_hard=3 * store.flush_bytes,
            ),
            on_commit=self._committed,
            observe=self.metrics.committed,
        )
        self.retention = Retention(self.store, self.committer.raise_floors)
        self.merger = Merger(self.store)
        bounds = (store.flush_interval_s, store.flush_rows, store.flush_bytes)
        self.flusher = Flusher(self.store, *bounds, self._flushed, lambda: self.committer.wants_cores)
        rules = RecordRules(ingest.unknown_fields, ingest.negative_values, max_depth=ingest.max_json_depth)
        self.intake = Intake(
            self.committer,
            rules,
            Limits(
                max_decompressed_bytes=ingest.max_decompressed_bytes,
                max_ratio=ingest.max_ratio,
                max_records=ingest.max_batch_records,
            ),
        )
        self.rules = rules
        self.inbox = Inbox(
            self.store.disk,
            self.committer,
            rules,
            Limits(max_ratio=ingest.max_ratio, chunk_rows=ingest.chunk_rows),
            InboxSettings(
                root,
                settle_s=ingest.settle_s,
                rescan_s=ingest.rescan_s,
                sources={folder: frozenset(names) for folder, names in ingest.inbox_sources.items()},
            ),
            on_idle=self.flusher.caught_up,
        )
        self.forwarder = Forwarder(
            [table for table in config.forward if table.in_service],
            self.feed,
            root,
            self.store.identity.store_id,
            self.store.disk,
        )

    def feed(self, name: str) -> Feed:
        """A reader of a feed, for one who reads on."""

        @contextlib.contextmanager
        def origin() -> Iterator[Origin]:
            yield Origin(self.store.snapshot(), self.store.state.rules)

        temp = self.store.root / "internal" / "tmp"
        self.store.disk.make_directory(temp)
        return Feed(
            name,
            Source(self.store.root, lambda: self.store.seq, lambda: self.store.state.kept_from(name), origin, temp),
        )

    def _committed(self) -> None:
        self.flusher.committed()
        self.news.tell()

    def _flushed(self) -> None:
        self.merger.flushed()
        self.retention.run_once()

    def start(self, *, inbox: bool = True) -> None:
        """Start the threads."""
        self.committer.start()
        self.flusher.start()
        self.merger.start()
        self.scrubber.start()
        self.compactor.start()
        if inbox:
            self.inbox.start()
            self.forwarder.start()

    def stop(self) -> None:
        """Take nothing more, commit and flush what is here, and give the directory free."""
        self.forwarder.stop()
        self.inbox.stop(_GRACE_S)
        self.committer.stop()
        self.forwarder.stop(_GRACE_S)
        self.inbox.stop()  # what it waited for, where no flush made room, has its answer now
        self.compactor.stop()
        self.scrubber.stop()
        self.merger.stop()
        if self.store.failure is None:
            self.flusher.stop()
        self.store.close()

    def gauges(self) -> dict[str, tuple[str, float]]:
        """Figures for Prometheus (`service.metrics.State`)."""
        store = self.store
        return {
            "seq": ("The newest committed seq.", store.seq),
            "flushed_seq": ("The newest seq that is in the Parquet.", store.flushed),
            "hot_records": ("Committed records that are not in the Parquet yet.", store.hot_rows),
            "hot_bytes": ("What they take in memory.", store.hot_bytes),
            "queue_batches": ("Batches that wait to be committed.", self.committer.waiting),
            "inbox_files": ("Files that wait in the inbox.", self.inbox.waiting),
            "parquet_files": ("Parquet files.", len(store.snapshot().files)),
        }

    def runs(self) -> dict[str, int]:
        """Runs on disk by kind."""
        return self.store.runs

    def sinks(self) -> list[SinkStatus]:
        """The sinks of the forwarder."""
        return self.forwarder.statuses()

    def compactions(self) -> CompactionCounters:
        """What was compacted since the start."""
        return self.store.compaction.counters

    def flushes(self) -> tuple[int, int, float]:
        """Flushes since the start, their records and seconds."""
        return self.flusher.done

    def health(self) -> dict[str, dict[str, object]]:
        """The state of each component."""
        return health_of(self)


def _opened(settings: StoreSettings) -> Store:
    began = time.monotonic()
    store = Store(settings)
    logger.info(
        "opened %s in %.1f s: %d records, %d of them not in the Parquet yet",
        store.root, time.monotonic() - began, store.seq, store.hot_rows,
    )  # fmt: skip
    return store


def _retention_us(config: Config) -> dict[str, int]:
    """By log how long its lines are kept, where that is not for ever."""
    outbox, rejected = retention_s(config.outbox.retention), retention_s(config.rejected.retention)
    keep = {**{f"outbox/{feed}": outbox for feed in FEEDS}, "rejected": rejected}
    return {log: round(seconds * 1_000_000) for log, seconds in keep.items() if seconds is not None}
