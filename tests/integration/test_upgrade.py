"""Upgrades: a data directory that an older oncelake wrote, opened by this one.

`tests/data/format-1.tar.gz` was written by the code of the commit before rollups, `format-2.tar.gz` by the one before
filters in runs, `format-3.tar.gz` by the one before packed summaries: five flushes, merged runs, records that only the
log holds, dead letters, a finished file; beside it what it answered then.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import tarfile
from pathlib import Path
from typing import Any

import pytest

from store import upgrade
from store.backup import back_up
from store.errors import CorruptionError, StoreVersionError
from store.files import Disk
from store.filters import Filters
from store.identity import load_identity
from store.schema import FORMAT_VERSION
from store.verify import verify
from tests.support.lake import Lake

SAMPLES = Path(__file__).parents[1] / "data"


@pytest.fixture(params=range(1, FORMAT_VERSION))
def version(request: pytest.FixtureRequest) -> int:
    """Of the sample."""
    return int(request.param)


@pytest.fixture
def root(tmp_path: Path, version: int) -> Path:
    """The sample, unpacked."""
    with tarfile.open(SAMPLES / f"format-{version}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / f"format-{version}"


@pytest.fixture
def told(root: Path) -> dict[str, Any]:
    """What it answered then."""
    found: dict[str, Any] = json.loads(root.with_name(f"{root.name}.json").read_bytes())
    return found


def assert_serves(root: Path, told: dict[str, Any]) -> None:
    """Same answers, same outboxes; it goes on taking records, and is proven."""
    lake = Lake(root, threshold="900", segment_bytes=6_000)
    assert lake.store.identity.format == FORMAT_VERSION
    assert lake.aggregate(Filters()) == told["aggregation"]
    assert {feed: lake.lines(feed) for feed in ("notifications", "alerts")} == {
        feed: told[feed] for feed in ("notifications", "alerts")
    }
    assert lake.receipt("done.ndjson")["accepted"] == 10
    record = told["aggregation"]["groups"][0]["records"][0]
    again = {name: value for name, value in record.items() if name != "seq"}
    assert lake.answer(lake.post(json.dumps([again, {**again, "recordId": "new"}]).encode()))["duplicate"] == 1
    lake.store.flush_once()
    lake.close()
    assert verify(root).ok


def test_the_sample_is_old(root: Path, version: int) -> None:
    """And is in order before it is upgraded, as far as its format goes."""
    identity = load_identity(root)
    assert identity is not None and identity.format == version
    assert verify(root).ok


def test_an_old_directory_is_upgraded_and_serves(root: Path, told: dict[str, Any]) -> None:
    """The small files stay aside as they were."""
    before = (root / "oncelake.json").read_bytes()
    assert_serves(root, told)
    kept = root / f"{upgrade.KEPT}-{FORMAT_VERSION}"
    assert (kept / "oncelake.json").read_bytes() == before
    assert sorted(path.name for path in kept.iterdir())[-1] == "oncelake.json" and len(list(kept.iterdir())) == 3


def test_a_backup_of_an_old_directory_is_upgraded_where_it_is_served(
    root: Path, version: int, told: dict[str, Any], tmp_path: Path
) -> None:
    """It is copied in its own format."""
    back_up(root, tmp_path / "copy", Disk())
    identity = load_identity(tmp_path / "copy")
    assert identity is not None and identity.format == version
    assert_serves(tmp_path / "copy", told)


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

    def write(self, path: Path, data: Any, *, sync: bool = True) -> None:
        self._count()
        super().write(path, data, sync=sync)

    def sync_directory(self, path: Path) -> None:
        self._count()
        super().sync_directory(path)


def test_an_upgrade_is_no_damage(root: Path, version: int, caplog: pytest.LogCaptureFixture) -> None:
    """What is made anew because it is old is told without alarm; before format 2 there were no rollups."""
    Lake(root).close()
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("summaries are made anew" in message and "of an older format" in message for message in told)
    assert version == 1 or not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_flush_that_was_half_done_is_done_behind_an_upgrade(root: Path, version: int, told: dict[str, Any]) -> None:
    """Its staged runs are old, too."""
    staging = root / "internal/staging"
    staging.mkdir(exist_ok=True)
    with contextlib.closing(sqlite3.connect(root / "internal/catalog.sqlite")) as db, db:
        db.row_factory = lambda cursor, row: dict(zip([name for name, *_ in cursor.description], row, strict=True))
        files, runs = (
            db.execute(f"SELECT * FROM {table} WHERE min_seq >= 58").fetchall() for table in ("files", "runs")
        )
        assert len(files) >= 3
        assert len(runs) == (2 if version == 1 else 3)
        moves = []
        for number, row in enumerate([*files, *runs]):
            source = staging / f"{number}.staged"
            if number:  # the first one has been moved
                (root / row["name"]).rename(source)
            moves.append({"from": str(source.relative_to(root)), "to": row["name"]})
        intent = {"firstSeq": 58, "lastSeq": 66, "moves": moves, "files": files, "runs": runs}
        db.execute("INSERT INTO intents (kind, body) VALUES ('flush', ?)", (json.dumps(intent),))
        db.execute("DELETE FROM files WHERE min_seq >= 58")
        db.execute("DELETE FROM runs WHERE min_seq >= 58")
        db.execute("UPDATE meta SET value = '57' WHERE key = 'flushed'")
    assert verify(root).ok
    assert_serves(root, told)


def test_an_upgrade_may_end_anywhere(root: Path, told: dict[str, Any]) -> None:
    """The next start goes on with it."""
    identity = load_identity(root)
    assert identity is not None
    before = (root / "oncelake.json").read_bytes()
    for calls in range(100):
        now = load_identity(root)
        assert now is not None
        try:
            upgrade.upgraded(Ending(calls), root, now)
        except Interrupted:
            continue
        break
    assert 5 < calls < 99
    assert (root / f"{upgrade.KEPT}-{FORMAT_VERSION}" / "oncelake.json").read_bytes() == before
    assert_serves(root, told)


@pytest.mark.parametrize("changed", [("4", "0"), ("4", "1"), ("4", "2"), ("4", "3"), ("4", "-1")])
def test_a_format_that_never_was_is_damage(tmp_path: Path, changed: tuple[str, str]) -> None:
    """It is named, by a start and by `verify`; an older number would skip the checksum."""
    lake = Lake(tmp_path / "data")
    lake.close()
    path = lake.root / "oncelake.json"
    path.write_text(path.read_text().replace(f'"format": {changed[0]}', f'"format": {changed[1]}'))
    with pytest.raises(CorruptionError, match=r"oncelake\.json is damaged"):
        Lake(lake.root)
    with pytest.raises(CorruptionError, match=r"oncelake\.json is damaged"):
        verify(lake.root)


def test_a_newer_format_is_refused_and_nothing_is_changed(root: Path, version: int) -> None:
    """With what it knows, and what to do."""
    path = root / "oncelake.json"
    path.write_text(path.read_text().replace(f'"format": {version}', '"format": 5'))
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != "lock"}
    with pytest.raises(StoreVersionError, match="knows formats up to 4"):
        Lake(root)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != "lock"} == before
