"""A whole lake in this process, without threads of its own but the committer's: for tests that drive every step."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from api.answers import json_answer
from api.questions import Question
from ingest.committer import Committer, CommitterSettings
from ingest.decode import Limits
from ingest.inbox import Inbox, InboxSettings
from ingest.intake import Intake
from ingest.record import Rules as RecordRules
from store.engine import Engine
from store.files import Disk
from store.filters import Filters
from store.journal import Rules
from store.outcomes import Reply
from store.retention import Retention
from store.store import Store, StoreSettings
from tests.support.batches import MEDIA_TYPES

__all__ = ["Lake"]


class Lake:
    """Open it, post to it, drop files, flush, crash it, open it again."""

    def __init__(
        self,
        root: Path,
        *,
        threshold: str = "10000",
        chunk_rows: int = 16,
        segment_bytes: int = 4_000,
        disk: Disk | None = None,
        retention_us: Mapping[str, int] | None = None,
    ) -> None:
        self.root = root
        self._rules = Rules(threshold)
        self._limits = Limits(chunk_rows=chunk_rows)
        self._settings = StoreSettings(root, False, segment_bytes, retention_us or {})
        self._disk = disk
        self.open()

    def open(self) -> None:
        """Open the data directory, recovering what is there."""
        self.store = Store(self._settings, disk=self._disk)
        self.committer = Committer(self.store, self._rules, CommitterSettings(commit_rows=40, ahead_rows=1))
        self.committer.start()
        self.intake = Intake(self.committer, RecordRules(), self._limits)
        self.inbox = Inbox(
            self.store.disk, self.committer, RecordRules(), self._limits, InboxSettings(self.root, settle_s=0.0)
        )

    def retain(self, now_us: int, *, remove: bool = True) -> list[str]:
        """What the retention removes at this time, once its floors are committed."""
        asked: list[Mapping[str, int]] = []

        def raise_floors(floors: Mapping[str, int]) -> None:
            asked.append(floors)
            self.committer.raise_floors(floors)

        retention = Retention(self.store, raise_floors, lambda: now_us)
        assert retention.run_once() == []
        end = time.monotonic() + 10
        while asked and any(self.store.state.kept.get(log) != floor for log, floor in asked[0].items()):
            assert time.monotonic() < end
            time.sleep(0.01)
        return retention.run_once() if remove else []

    def close(self) -> None:
        """Stop, without a flush: the next start has hot rows to load."""
        self.committer.stop()
        self.store.close()

    def restart(self) -> None:
        """Close and open."""
        self.close()
        self.open()

    def post(
        self,
        body: bytes,
        fmt: str = "json",
        compression: str | None = None,
        *,
        atomic: bool = False,
        dry_run: bool = False,
    ) -> Reply:
        """What `POST /records` does with a body."""
        future = self.intake.submit(
            body, MEDIA_TYPES[fmt], compression, atomic=atomic, dry_run=dry_run, request_id="test"
        )
        return future.result(30)

    def answer(self, reply: Reply) -> dict[str, Any]:
        """The batch answer as JSON values."""
        found: dict[str, Any] = json.loads(msgspec.json.encode(reply.answer))
        return found

    def aggregate(self, filters: Filters, include: Literal["records", "totals"] = "records") -> dict[str, Any]:
        """The answer to an aggregation as JSON values."""
        temp = self.root / "internal" / "tmp"
        temp.mkdir(parents=True, exist_ok=True)
        engine = Engine(self.root, temp)
        try:
            with json_answer(engine, self.store.snapshot(), Question(filters, include)) as answer:
                pieces = b"".join(answer.pieces)
        finally:
            engine.close()
        found: dict[str, Any] = json.loads(pieces)
        return found

    def drop(self, name: str, data: bytes) -> None:
        """Drop a file into the inbox, by rename."""
        hidden = self.root / "inbox" / f".{name}"
        hidden.write_bytes(data)
        hidden.rename(self.root / "inbox" / name)

    def receipt(self, name: str, folder: str = "processed") -> dict[str, Any]:
        """The receipt of a file."""
        found: dict[str, Any] = json.loads((self.root / folder / f"{name}.receipt.json").read_bytes())
        return found

    def lines(self, feed: str) -> list[str]:
        """All lines of an outbox, across segments."""
        segments = sorted((self.root / "outbox" / feed).glob("*.jsonl"))
        return [line for path in segments for line in path.read_text().splitlines()]
