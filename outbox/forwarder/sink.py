"""What the forwarder asks of a sink, and what a sink may answer.

```
Undelivered             nobody knows, or it is known, that a message is not with the sink: it is sent again
├── Rejected            the sink answered that it does not take these messages; others may pass
├── Stale               the sink holds other messages than was thought: ask it again where it stands
├── Gone                the sink wants nothing ever again (410): it is disabled
└── Refused             this sink is not the one that the checkpoint or the store knows: an operator must decide
```
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

__all__ = [
    "TIMEOUT_S",
    "Found",
    "Gone",
    "Head",
    "Message",
    "Refused",
    "Rejected",
    "Sink",
    "Source",
    "Stale",
    "Undelivered",
    "head_of",
]

TIMEOUT_S = 10.0
"""For one request to a sink."""


class Undelivered(Exception):  # noqa: N818  (an outcome, and the word for it)
    """The messages are not, or not surely, with the sink. `retry_after_s` is how long it wants to be left alone."""

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Rejected(Undelivered):
    """The sink is well and does not take these messages."""


class Stale(Undelivered):
    """Something else was written to the sink, or an earlier attempt went through after all."""


class Gone(Undelivered):
    """The sink wants nothing any more."""


class Refused(Undelivered):
    """Sending would mix two stores, or be swallowed as duplicates."""


class Message(NamedTuple):
    """A line of a feed without its line end."""

    seq: int
    line: bytes


class Found(NamedTuple):
    """The newest message that a sink holds. Seq 0: it is new and holds none. `line` where the sink can show it."""

    seq: int
    line: bytes | None = None


class Sink(Protocol):
    """One place to send to, used by one thread. Every call ends within some `TIMEOUT_S` or raises `Undelivered`."""

    def open(self) -> Found | None:
        """Connect, make what is missing, and say where the sink stands; None where it cannot tell."""

    def send(self, messages: Sequence[Message]) -> None:
        """Send in order; returns once the sink has acknowledged all of them."""

    def resend(self, messages: Sequence[Message]) -> None:
        """Send dead letters again, whose seqs lie behind those sent last."""

    def close(self) -> None:
        """Give connections free; what was not acknowledged counts as not sent."""


class Source(Protocol):
    """A feed to read from: committed lines only."""

    def newest(self) -> int:
        """The newest committed seq of the store."""

    def read(self, after: int, limit: int, max_bytes: int) -> list[tuple[int, bytes]]:
        """Lines with a seq above `after`, in order: at most `limit`, of `max_bytes` together, but at least one."""


class _Record(msgspec.Struct):
    sourceId: str
    destinationId: str
    unit: str


class Head(msgspec.Struct):
    """What the forwarder reads of a line."""

    seq: int
    processedAt: str
    record: _Record


head_of = msgspec.json.Decoder(Head).decode
"""The head of a line."""
