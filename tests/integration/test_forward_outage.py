"""A day without a receiver, over a real lake: ingest goes on, segments are removed, and nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox.forwarder.settings import Forward
from outbox.forwarder.shipper import Shipper
from store.files import Disk
from tests.support.feeds import FEEDS, all_lines, fill, inside
from tests.support.forwarding import Clock, PlainSink, drive
from tests.support.lake import Lake


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    lake = Lake(tmp_path / "data", threshold="100", retention_us={f"outbox/{feed}": 1 for feed in FEEDS})
    yield lake
    lake.close()


@pytest.mark.parametrize("name", FEEDS)
def test_a_day_of_outage_is_made_up_from_the_parquet_where_segments_are_gone(lake: Lake, name: str) -> None:
    """In order, to the byte, each line once. Meanwhile records come in, and the sink is asked now and then."""
    clock, sink = Clock(), PlainSink()
    ship = Shipper(
        Forward("sink", "http://127.0.0.1:9/", feed=name, batch=10),  # type: ignore[arg-type]
        inside(lake.store, name, lake.root / "tmp"),
        lambda: sink,
        lake.root,
        "store",
        Disk(fsync=False),
        clock=clock,
        now=clock.today,
        chance=lambda: 0.5,
    )
    fill(lake, 6, 9)
    drive(ship, 54)
    sink.is_down = True
    for _ in range(12):
        fill(lake, 1, 9, flush_every=1)
        until = clock.at + 7_200
        while clock.at < until:
            clock.at += ship.step()
    assert clock.at > 86_000 and lake.store.seq == lake.store.flushed == 162
    expected = all_lines(lake.root, name)
    assert lake.retain(time.time_ns() // 1_000)
    assert lake.store.state.kept_from(name) > 100, "the backlog must reach into what is gone"
    assert len(all_lines(lake.root, name)) < 30
    sink.is_down = False
    drive(ship, 162)
    ship.close()
    assert [tuple(message) for message in sink.got] == expected
