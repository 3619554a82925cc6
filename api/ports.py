"""What the API needs of the rest of the service; wiring fills these in."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from outbox.feed import Feed
from outbox.news import News
from store.engine import Engine
from store.letters import Letters
from store.outcomes import Reply
from store.promise import Promise
from store.snapshot import Snapshot

__all__ = ["ApiSettings", "Intake", "Reader"]


class Intake(Protocol):
    """Takes bodies of `POST /records`."""

    def submit(
        self,
        body: bytes,
        media_type: str,
        encoding: str | None,
        *,
        atomic: bool,
        dry_run: bool,
        request_id: str,
        sources: frozenset[str] | None = None,
        letter: str | None = None,
    ) -> Promise[Reply]:
        """Decode a body in this thread and queue it; raises what is wrong with it (`store.errors`).

        Records of other sources than `sources` (None is all) are rejected. `letter` is the id of the dead letter whose
        record this is: one JSON object then.
        """


class Reader(Protocol):
    """Answers questions."""

    engine: Engine
    news: News
    letters: Letters

    def feed(self, name: str) -> Feed:
        """The feed of this name."""

    def snapshot(self) -> AbstractContextManager[Snapshot]:
        """What a read sees, for as long as it reads."""

    def find(self, record_id: str) -> pa.Table | None:
        """The stored record with this id (one row, schema `STORED`), or None."""

    def metrics(self) -> tuple[bytes, str]:
        """What Prometheus reads, and its media type."""

    def health(self) -> dict[str, dict[str, object]]:
        """The state of each component."""


@dataclass(frozen=True)
class ApiSettings:
    """Limits of the HTTP face. Bodies up to `inline_bytes` are decoded on the event loop, larger ones in a thread.

    `waiting_queries` wait for their first byte beside those that run. `open_answers` are read by clients at once, each
    of which keeps some MB and its part of the spool. `max_answer_rows` of 0 is no limit.
    Server-sent events have a comment after `heartbeat_s` in which there were none.
    """

    max_body_bytes: int = 32 << 20
    concurrent_queries: int = 4
    inline_bytes: int = 4_096
    open_answers: int = 64
    waiting_queries: int = 60
    max_answer_rows: int = 0
    heartbeat_s: float = 15.0
