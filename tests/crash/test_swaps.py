"""Partitions are exchanged under readers of every kind: never a wrong answer, and in the process never an error.

`ONCELAKE_TEST_SWAPS` sets the number of exchanges.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.engine import Engine
from store.filters import Filters
from store.queries import totals
from store.store import Store
from store.verify import verify
from tests.support.direct import DAY_US, START_US, Direct, open_store, record_of

SWAPS = int(os.environ.get("ONCELAKE_TEST_SWAPS", "100"))
DAYS = 4
FIRST = 40


class Lake:
    """A store whose records have their seq as value, over four days."""

    def __init__(self, root: Path) -> None:
        self.store: Store = open_store(root, segment_bytes=1 << 20)
        self.committer = Direct(self.store)
        self.numbers = 0

    def flush(self, records: int) -> None:
        """So many records over all days, in the Parquet."""
        batch = []
        for _ in range(records):
            self.numbers += 1
            time = START_US + self.numbers % DAYS * DAY_US
            batch.append(record_of(self.numbers, time=time, type="positive", value=self.numbers))
        self.committer.take(list(batch))
        self.store.flush_once()


class Reader:
    """A reader in a process of its own; see `tests.support.readers`."""

    def __init__(self, kind: str, root: Path) -> None:
        self.kind = kind
        self.process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "tests.support.readers", kind, str(root), str(FIRST)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "begun\n"

    def end(self) -> dict[str, int]:
        """What it saw; it must have seen something, and nothing wrong."""
        out, _ = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, self.kind
        found: dict[str, int] = json.loads(out)
        assert found["wrong"] == [], self.kind
        assert found["reads"] > 0, self.kind
        return found


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    """A lake with some records in its Parquet."""
    lake = Lake(tmp_path / "data")
    lake.flush(FIRST)
    yield lake
    lake.store.close()


def swap(lake: Lake, swaps: int) -> None:
    """Flush and compact until so many partitions were exchanged."""
    counters = lake.store.compaction.counters
    until = counters.partitions + swaps
    while counters.partitions < until:
        lake.flush(DAYS + lake.numbers % 7)
        lake.store.compaction.run_once()
    assert counters.failures == 0


def test_two_readers_of_the_glob_see_each_record_once_or_miss_a_file(lake: Lake) -> None:
    """One asks DuckDB, one lists and opens by itself; both count and sum."""
    readers = [Reader(kind, lake.store.root) for kind in ("glob", "listing")]
    swap(lake, SWAPS)
    found = {reader.kind: reader.end() for reader in readers}
    print({"swaps": lake.store.compaction.counters.partitions, **found})
    assert verify(lake.store.root).differences == []


def test_commands_that_read_beside_the_service_never_miss_a_file(lake: Lake) -> None:
    """`aggregate` and `verify` answer rightly, also while partitions are exchanged all the time."""
    readers = [Reader(kind, lake.store.root) for kind in ("command", "proof")]
    swap(lake, SWAPS)
    for reader in readers:
        assert reader.end()["missing"] == 0


def test_readers_of_the_process_see_nothing_of_it(lake: Lake, tmp_path: Path) -> None:
    """Aggregations and look-ups beside exchanges: always right, never an error; afterwards no link is left over."""
    engine = Engine(lake.store.root, tmp_path)
    ended = threading.Event()
    answers: list[int] = []
    errors: list[BaseException] = []

    def read() -> None:
        try:
            while not ended.is_set():
                snapshot = lake.store.snapshot()
                rows = totals(engine, snapshot, Filters(start_us=1)).to_pylist()
                found = (sum(row["count"] for row in rows), int(sum(row["positive"] for row in rows)))
                assert found == (snapshot.seq, snapshot.seq * (snapshot.seq + 1) // 2)
                row = lake.store.find(f"id-{1 + len(answers) % FIRST}")
                assert row is not None
                assert row.num_rows == 1
                answers.append(snapshot.seq)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    swap(lake, SWAPS)
    ended.set()
    for thread in threads:
        thread.join()
    engine.close()
    if errors:
        raise errors[0]
    assert len(set(answers)) > 1
    lake.store.compaction.run_once()
    links = {path.name for path in (lake.store.root / "internal/links").iterdir()}
    assert links == {file.path.name for file in lake.store.snapshot().files}
