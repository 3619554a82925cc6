"""A feed in memory, shippers over it, and a sink that does as it is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from outbox.forwarder.settings import Forward
from outbox.forwarder.shipper import Shipper
from outbox.forwarder.sink import Found, Message, Sink, Undelivered
from outbox.forwarder.sinks.making import make_sink
from store.files import Disk

__all__ = ["STORE", "Clock", "ListSource", "PlainSink", "close_shippers", "line_of", "lines_of", "shipper"]

STORE = "5f2c" * 8


def line_of(seq: int, *, unit: str = "SEK", destination: str = "", salt: str = "") -> bytes:
    """A notification as the outbox has it, without its line end."""
    goes_to = destination or f"d{seq % 7}"
    return (
        f'{{"seq":{seq},"processedAt":"2024-03-01T12:00:{seq % 60:02d}.000000Z","record":{{"recordId":"r{seq}{salt}",'
        f'"time":"2024-03-01T12:00:00.000000Z","sourceId":"s{seq % 3}","destinationId":"{goes_to}",'
        f'"type":"positive","value":"{seq}.5","unit":"{unit}","reference":"räksmörgås"}},'
        '"previous":{"count":0,"firstTime":null,"lastTime":null,"lastSeq":null,"totals":[]}}'
    ).encode()


def lines_of(first: int, last: int, **fields: str) -> list[tuple[int, bytes]]:
    return [(seq, line_of(seq, **fields)) for seq in range(first, last + 1)]


class ListSource:
    """A feed in memory."""

    def __init__(self, lines: list[tuple[int, bytes]], newest: int | None = None) -> None:
        self.lines = lines
        self._newest = newest
        self.reads = 0
        self.most = 0

    def newest(self) -> int:
        return self._newest if self._newest is not None else (self.lines[-1][0] if self.lines else 0)

    def read(self, after: int, limit: int, max_bytes: int) -> list[tuple[int, bytes]]:
        self.reads += 1
        found: list[tuple[int, bytes]] = []
        size = 0
        first = min(after, len(self.lines)) if self.lines and self.lines[0][0] == 1 else 0
        for seq, line in self.lines[first:]:
            if len(found) == limit or (found and size + len(line) > max_bytes):
                break
            if seq > after:
                found.append((seq, line))
                size += len(line)
        self.most = max(self.most, len(found))
        return found


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at

    def today(self) -> datetime:
        return datetime.fromtimestamp(1_709_294_400 + self.at, UTC)


class PlainSink:
    """Keeps what it is sent; `answer` may raise instead."""

    def __init__(self, answer: Callable[[Sequence[Message]], None] = lambda messages: None) -> None:
        self.got: list[Message] = []
        self.again: list[Message] = []
        self.sizes: list[int] = []
        self.answer = answer
        self.found: Found | None = None
        self.is_down = False

    def open(self) -> Found | None:
        if self.is_down:
            raise Undelivered("nobody answers")
        return self.found

    def send(self, messages: Sequence[Message]) -> None:
        if self.is_down:
            raise Undelivered("nobody answers")
        self.sizes.append(len(messages))
        self.answer(messages)
        self.got += messages

    def resend(self, messages: Sequence[Message]) -> None:
        if self.is_down:
            raise Undelivered("nobody answers")
        self.answer(messages)
        self.again += messages

    def close(self) -> None:
        pass


def shipper(
    root: Path, reader: ListSource, url: str = "http://127.0.0.1:9/", sink: Sink | None = None, **options: Any
) -> Shipper:
    """A shipper with a clock of its own where none is given."""
    clock = options.pop("clock", None) or Clock()
    store_id = options.pop("store_id", STORE)
    table = Forward("sink", url, **options)
    table.check()
    disk = Disk(fsync=False)
    made = (lambda: sink) if sink is not None else (lambda: make_sink(table, store_id, disk))
    ship = Shipper(table, reader, made, root, store_id, disk, clock=clock, now=clock.today, chance=lambda: 0.0)
    _open.append(ship)
    return ship


_open: list[Shipper] = []


def close_shippers() -> None:
    """Those that a test made: their connections, and their locks."""
    while _open:
        _open.pop().close()


def drive(ship: Shipper, target: int, steps: int = 10_000) -> None:
    """Steps until everything up to a seq is done with; waiting only moves the clock."""
    for _ in range(steps):
        if ship.is_drained(target):
            return
        ship._clock.at += ship.step()  # type: ignore[attr-defined]
    raise AssertionError(f"not done: {ship.status()}")
