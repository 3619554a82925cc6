"""A lake whose feeds are cut into small segments, and the feeds of it, inside the process and beside it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from outbox.feed import Feed, Source, source_beside
from outbox.remake import Origin
from store.store import Store
from tests.support.lake import Lake

__all__ = ["FEEDS", "all_lines", "beside", "body_of", "fill", "inside", "read_all"]

FEEDS = ("notifications", "alerts")


def body_of(first: int, count: int) -> bytes:
    """So many records: few keys, two units, some above the threshold of 100, texts that need escaping."""
    records = [
        {
            "recordId": f"rec-{number}",
            "time": f"2024-03-{1 + number % 5:02d}T12:00:{number % 60:02d}.{number:06d}Z",
            "sourceId": f'source-"{number % 3}"',
            "destinationId": f"dest-ö{number % 4}",
            "type": "negative" if number % 3 == 0 else "positive",
            "value": f"{number * 7 % 150}.{number % 10}",
            "unit": "kg" if number % 7 == 0 else "SEK",
            "reference": f"invoice-{number % 5}",
        }
        for number in range(first, first + count)
    ]
    return json.dumps(records).encode()


def fill(lake: Lake, commits: int, each: int, *, flush_every: int = 2) -> None:
    """Commits of `each` records, flushed now and then; the last ones stay hot."""
    for number in range(commits):
        lake.post(body_of(lake.store.seq, each))
        if number % flush_every == 0:
            lake.store.flush_once()


def inside(store: Store, name: str, temp: Path) -> Feed:
    """A feed as the service reads it."""

    @contextlib.contextmanager
    def origin() -> Iterator[Origin]:
        yield Origin(store.snapshot(), store.state.rules)

    temp.mkdir(exist_ok=True)
    return Feed(name, Source(store.root, lambda: store.seq, lambda: store.state.kept_from(name), origin, temp))


def beside(root: Path, name: str, temp: Path) -> Feed:
    """A feed as another process reads it."""
    temp.mkdir(exist_ok=True)
    return Feed(name, source_beside(root, name, temp))


def all_lines(root: Path, name: str) -> list[tuple[int, bytes]]:
    """What stands in the segments, all of it."""
    lines = [
        line for path in sorted((root / "outbox" / name).glob("*.jsonl")) for line in path.read_bytes().splitlines()
    ]
    return [(json.loads(line)["seq"], line) for line in lines]


def read_all(feed: Feed, after: int = 0, *, limit: int = 7, max_bytes: int = 3_000) -> list[tuple[int, bytes]]:
    """The whole feed, in small steps."""
    found: list[tuple[int, bytes]] = []
    while part := feed.read(found[-1][0] if found else after, limit, max_bytes):
        assert len(part) <= limit and (len(part) == 1 or sum(len(line) + 1 for _, line in part) <= max_bytes)
        found += part
    return found
