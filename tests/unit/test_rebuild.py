"""Rebuilding what is derived: the same as before, whatever interrupts it, and never from rot."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.cli import main
from store import remake
from store.errors import CorruptionError, StoreInUseError
from store.files import Disk
from store.filters import Filters
from store.kinds import KINDS
from store.ranges import PAGE_ROWS
from store.rebuild import rebuild
from store.summaries import in_columns
from store.verify import verify
from tests.support.lake import Lake


def record(number: int, **fields: object) -> dict[str, object]:
    return {
        "recordId": f"rec-{number}",
        "time": f"2024-03-{1 + number % 3:02}T{number % 24:02}:00:00Z",
        "sourceId": "source-a",
        "destinationId": f"dest-{number % 5}",
        "type": "positive" if number % 4 else "negative",
        "value": f"{number % 1_000}.5",
        "unit": "SEK",
        "reference": f"invoice-{number % 7}",
        **fields,
    }


def batch(first: int, count: int) -> bytes:
    return json.dumps([record(number) for number in range(first, first + count)]).encode()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A closed store with merged and fresh runs, and hot rows."""
    lake = Lake(tmp_path / "data", threshold="100", segment_bytes=3_000)
    for first in range(0, 100, 20):
        lake.post(batch(first, 20))
        lake.store.flush_once()
        while lake.store.tiers.merge_once():
            pass
    lake.post(batch(200, 7))
    lake.close()
    return lake.root


def derived(root: Path) -> dict[str, list[dict[str, Any]]]:
    """What all runs of a kind say together, as one."""
    with sqlite3.connect(root / "internal/catalog.sqlite") as database:
        rows = database.execute("SELECT name, kind FROM runs").fetchall()
    database.close()
    found = {}
    for kind in KINDS:
        pages = []
        for name in sorted(name for name, of in rows if of == kind):
            with pa.memory_map(str(root / name)) as source:
                pages.append(pa.ipc.open_file(source).read_all())
        table = pa.concat_tables(pages)
        if "filter" in table.column_names:  # of pages, which differ
            table = table.drop_columns("filter")
        if kind == "summaries":
            table = pa.Table.from_batches(map(in_columns, table.combine_chunks().to_batches()))
        columns = table.column_names[:3]
        keys = [(name, "ascending") for name in columns]
        sums = [
            name for name in table.column_names if name in ("count", "positive", "negative", "positives", "negatives")
        ]
        if kind == "index":
            found[kind] = table.sort_by(keys).to_pylist()
            continue
        extremes = [(name, how) for name, how in (("first", "min"), ("last", "max"), ("lastSeq", "max"))]
        wanted = [(name, "sum") for name in sums] + [pair for pair in extremes if pair[0] in table.column_names]
        found[kind] = table.group_by(columns).aggregate(wanted).sort_by(keys).to_pylist()
    return found


def answers(root: Path) -> tuple[Any, ...]:
    """What the store says when it is opened, to repeats, conflicts and questions."""
    lake = Lake(root, threshold="100", segment_bytes=3_000)
    try:
        repeated = lake.answer(lake.post(batch(95, 10), dry_run=True))
        return repeated, lake.aggregate(Filters()), lake.lines("notifications")
    finally:
        lake.close()


@pytest.mark.parametrize("rows_at_once", [1, 30, 1_000_000])
def test_what_is_rebuilt_equals_what_was_there(root: Path, monkeypatch: pytest.MonkeyPatch, rows_at_once: int) -> None:
    """Same index, same summaries, same rollups, same answers; in pieces of any size, merged in any number of steps."""
    monkeypatch.setattr(remake, "_ROWS", rows_at_once)
    monkeypatch.setattr(remake, "_FAN_IN", 2)
    before, told = derived(root), answers(root)
    assert main(["rebuild", "--data", str(root)]) == 0
    assert derived(root) == before
    assert answers(root) == told
    assert verify(root).ok
    assert [path.name for path in (root / "internal/index").iterdir()] == [f"{1:020d}-{100:020d}.rebuilt.arrow"]
    assert rebuild(root, Disk()).flushed == 100
    assert derived(root) == before and verify(root).ok
    assert not (root / remake.REMAKE).exists()


def test_a_rebuild_beside_a_service_is_refused(root: Path) -> None:
    """It would exchange what the service reads."""
    lake = Lake(root)
    with pytest.raises(StoreInUseError, match="in use"):
        rebuild(root, Disk())
    lake.close()


class Interrupted(Exception):
    """The process ends here."""


class Ending(Disk):
    """Ends the process before the call of this number."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    def _count(self) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise Interrupted

    def rename(self, source: Path, target: Path) -> None:
        self._count()
        super().rename(source, target)

    def remove(self, path: Path) -> None:
        self._count()
        super().remove(path)

    def sync_directory(self, path: Path) -> None:
        self._count()
        super().sync_directory(path)


def test_a_rebuild_may_end_anywhere(root: Path) -> None:
    """The old runs count until all new ones do; what is left over goes at the next start."""
    before = derived(root)
    for calls in range(1_000):
        try:
            rebuild(root, Ending(calls))
        except Interrupted:
            assert calls % 7 or verify(root).ok, calls
            assert derived(root) == before, calls
            continue
        break
    assert calls > 10
    assert derived(root) == before and verify(root).ok
    assert len(list((root / "internal/index").iterdir())) == 1


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("damage", ["removed", "cut", "no Arrow file", "forgotten"])
def test_a_start_makes_runs_that_are_lost_anew(
    root: Path, caplog: pytest.LogCaptureFixture, kind: str, damage: str
) -> None:
    """By itself, loudly, and only those; the checksums of the Parquet files stay."""
    before = derived(root)
    path = max((root / "internal" / kind).iterdir())
    match damage:
        case "removed":
            path.unlink()
        case "cut":
            path.write_bytes(path.read_bytes()[:-8])
        case "no Arrow file":
            path.write_bytes(bytes(path.stat().st_size))
        case _:
            with sqlite3.connect(root / "internal/catalog.sqlite") as database:
                database.execute("DELETE FROM runs WHERE name = ?", (str(path.relative_to(root)),))
            database.close()
    Lake(root, threshold="100", segment_bytes=3_000).close()
    assert f"runs of the {kind} are made anew" in caplog.text
    assert derived(root) == before
    assert verify(root).ok
    rebuilt = [
        folder for folder in KINDS if any("rebuilt" in path.name for path in (root / "internal" / folder).iterdir())
    ]
    assert rebuilt == [kind]


def altered(root: Path, number: int) -> Path:
    """A Parquet file with another value in it, whole in itself: rows, seqs and footer are what they were."""
    path = sorted(root.glob("records/**/*.parquet"))[number]
    table = pq.read_table(path, partitioning=None)
    values = table.column("value").to_pylist()
    values[0] += 1
    at = table.schema.get_field_index("value")
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type)), path)
    return path


def test_nothing_is_rebuilt_from_rot(root: Path) -> None:
    """A Parquet file that is not the one in the catalog is named, and what stands stays."""
    before = derived(root)
    path = altered(root, 4)
    with pytest.raises(CorruptionError, match=path.name):
        rebuild(root, Disk())
    assert derived(root) == before
    max((root / "internal/index").iterdir()).unlink()
    with pytest.raises(CorruptionError, match=path.name):
        Lake(root)


def test_rot_is_not_made_right_by_losing_the_catalog(root: Path) -> None:
    """The notification log still has the record as it was: the start is refused, and says which seq differs."""
    altered(root, 4)
    (root / "internal/catalog.sqlite").unlink()
    with pytest.raises(CorruptionError, match="the first is seq"):
        Lake(root)


def test_a_lost_catalog_is_made_anew_and_proven(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From whole files, and held against the log without a complaint."""
    before, told = derived(root), answers(root)
    (root / "internal/catalog.sqlite").unlink()
    assert answers(root) == told
    assert derived(root) == before
    assert verify(root).ok
    assert "taken as they are" not in caplog.text


def test_a_file_of_somebody_else_costs_nothing(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A start is refused with its name, and goes on with the catalog as it was once the file is gone."""
    stray = root / "records" / "mine.parquet"
    pq.write_table(pa.table({"seq": [1]}), stray)
    before = (root / "internal/catalog.sqlite").read_bytes()
    with pytest.raises(CorruptionError, match=r"mine\.parquet was not written by oncelake: move it out"):
        Lake(root)
    assert (root / "internal/catalog.sqlite").read_bytes() == before
    stray.unlink()
    caplog.clear()
    lake = Lake(root)
    assert "anew" not in caplog.text and lake.store.seq == 107
    lake.close()


def test_a_catalog_whose_damage_is_no_text_is_made_anew(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SQLite tells the damaged schema in its message, which is no UTF-8 then."""
    path = root / "internal/catalog.sqlite"
    path.write_bytes(path.read_bytes().replace(b"NULL,", b"NULL\xac"))
    lake = Lake(root)
    assert "the catalog is made anew" in caplog.text and lake.store.seq == 107
    lake.close()
    assert verify(root).ok


def test_pages_stay_small() -> None:
    """What is read at once is less than a page of a run."""
    assert remake._ROWS < PAGE_ROWS
