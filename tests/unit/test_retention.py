"""Retention: what is old and in the Parquet goes, the rest stays, and nothing that was promised is lost with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from store.errors import CorruptionError
from store.files import Disk
from store.log import begun_at
from store.rebuild import rebuild
from store.verify import verify
from tests.support.faults import Crash
from tests.support.feeds import FEEDS, all_lines, beside, body_of, fill, inside, read_all
from tests.support.lake import Lake

HOUR_US = 3_600_000_000
LOGS = ("outbox/notifications", "outbox/alerts", "rejected")


class Clock:
    """Microseconds since the epoch, an hour further with each commit."""

    def __init__(self) -> None:
        self.at = 1_790_000_000_000_000

    def __call__(self) -> int:
        self.at += HOUR_US
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lake(tmp_path: Path, clock: Clock) -> Iterator[Lake]:
    """Twelve commits, an hour apart, of nine good records and a bad one each, kept for five hours; the last is hot."""
    lake = Lake(tmp_path / "data", threshold="100", retention_us=dict.fromkeys(LOGS, 5 * HOUR_US))
    lake.committer._now_us = clock
    for number in range(12):
        lake.post(body_of(9 * number, 9)[:-1] + b',{"recordId":""}]')
        if number == 10:
            lake.store.flush_once()
    yield lake
    lake.close()


def segments(lake: Lake, log: str) -> list[str]:
    return [path.name for path in sorted((lake.root / log).glob("*.jsonl"))]


def assert_whole(lake: Lake, before: dict[str, list[tuple[int, bytes]]]) -> None:
    """Every line is still given out, inside and beside the process, and `verify` finds nothing."""
    lake.store.write_committed()
    for name in FEEDS:
        assert read_all(inside(lake.store, name, lake.root / "tmp")) == before[name]
        assert read_all(beside(lake.root, name, lake.root / "tmp"), limit=50, max_bytes=1 << 20) == before[name]
    assert verify(lake.root).differences == []


def test_segments_that_are_old_go_and_every_line_is_still_there(lake: Lake, clock: Clock) -> None:
    """Segments are begun anew after an eighth of the retention; those go whose lines are older than all of it."""
    before = {name: all_lines(lake.root, name) for name in FEEDS}
    assert len(segments(lake, "outbox/notifications")) == 12
    now = clock.at
    gone = lake.retain(now)
    assert {str(Path(name).parent) for name in gone} == set(LOGS)
    for log in LOGS:
        left = segments(lake, log)
        assert left and begun_at(lake.root / log / left[0]) <= clock.at - 5 * HOUR_US
        ages = [(now - begun_at(lake.root / log / name)) / HOUR_US for name in left]
        assert ages[0] >= 5 and all(age < 5 for age in ages[1:]), (log, ages)
    assert segments(lake, "outbox/notifications")[0] == f"{6 * 9 + 1:020d}.jsonl"
    assert_whole(lake, before)
    assert lake.retain(now) == []
    lake.restart()
    assert_whole(lake, before)
    lake.post(body_of(500, 3))
    assert verify(lake.root).differences == []


def test_what_is_not_in_the_parquet_stays(tmp_path: Path, clock: Clock) -> None:
    """However old: the notification log is what a start reads it from."""
    lake = Lake(tmp_path / "data", threshold="100", retention_us=dict.fromkeys(LOGS, 1))
    lake.committer._now_us = clock
    fill(lake, 3, 9, flush_every=100)
    for number in range(3, 6):
        lake.post(body_of(9 * number, 9))
    before = {name: all_lines(lake.root, name) for name in FEEDS}
    lake.retain(clock.at + 1_000 * HOUR_US)
    assert segments(lake, "outbox/notifications")[0] == f"{10:020d}.jsonl"
    lake.restart()
    assert_whole(lake, before)
    lake.close()


def test_without_a_retention_nothing_goes(tmp_path: Path, clock: Clock) -> None:
    """The default."""
    lake = Lake(tmp_path / "data", threshold="100")
    fill(lake, 4, 9, flush_every=1)
    before = segments(lake, "outbox/notifications")
    assert lake.retain(clock.at + 1_000_000 * HOUR_US) == []
    assert segments(lake, "outbox/notifications") == before
    lake.close()


def test_a_start_removes_what_a_crash_has_left(lake: Lake, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the frame of the floor, and in the middle of the removal."""
    before = {name: all_lines(lake.root, name) for name in FEEDS}
    lake.retain(clock.at, remove=False)
    assert len(segments(lake, "outbox/notifications")) == 12
    assert_whole(lake, before)
    remove = Disk.remove
    left = [2]

    def crash(disk: Disk, path: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Crash
        remove(disk, path)

    with monkeypatch.context() as patch:
        patch.setattr(Disk, "remove", crash)
        with pytest.raises(Crash):
            lake.retain(clock.at)
    assert len(segments(lake, "outbox/notifications")) == 10
    assert verify(lake.root).differences == []
    lake.restart()
    assert segments(lake, "outbox/notifications")[0] == f"{6 * 9 + 1:020d}.jsonl"
    assert not (lake.root / "internal/quarantine").exists(), "what was let go is not kept for people"
    assert_whole(lake, before)


def test_a_segment_goes_on_after_a_start_until_it_is_old(tmp_path: Path) -> None:
    """Its age is in its first line, not in the process."""
    lake = Lake(tmp_path / "data", segment_bytes=1 << 20, retention_us=dict.fromkeys(LOGS, 8 * HOUR_US))
    for number, (hours, count) in enumerate([(0.0, 1), (0.9, 1), (1.0, 2), (1.9, 2), (2.0, 3)]):
        lake.committer._now_us = lambda hours=hours: 1_790_000_000_000_000 + int(hours * HOUR_US)  # type: ignore[misc]
        lake.post(body_of(3 * number, 3))
        assert len(segments(lake, "outbox/notifications")) == count
        lake.restart()
    lake.close()


def test_a_rebuild_and_a_lost_catalog_do_without_what_is_gone(lake: Lake, clock: Clock) -> None:
    """Records are made anew from the Parquet, and held against the lines that are left."""
    before = {name: all_lines(lake.root, name) for name in FEEDS}
    assert lake.retain(clock.at)
    lake.close()
    rebuild(lake.root, Disk(fsync=False))
    for path in (lake.root / "internal").glob("catalog.sqlite*"):
        path.unlink()
    lake.open()
    assert_whole(lake, before)


def test_a_line_missing_above_the_floor_is_found(lake: Lake, clock: Clock) -> None:
    """The floor excuses what is below it, and no more."""
    assert lake.retain(clock.at)
    first = segments(lake, "outbox/alerts")[0]
    (lake.root / "outbox/alerts" / first).unlink()
    found = [difference.file for difference in verify(lake.root).differences if difference.kind == "segment"]
    assert found == [f"outbox/alerts/{first}"]


def test_a_segment_whose_age_cannot_be_told_is_kept(lake: Lake, clock: Clock) -> None:
    """And what follows it."""
    path = lake.root / "outbox/notifications" / segments(lake, "outbox/notifications")[2]
    path.write_bytes(b"x" + path.read_bytes()[1:])
    with pytest.raises(CorruptionError, match="damaged"):
        begun_at(path)
    lake.retain(clock.at)
    assert segments(lake, "outbox/notifications")[0] == f"{9 + 1:020d}.jsonl"


def test_dead_letters_that_are_gone_are_not_told_of(lake: Lake, clock: Clock) -> None:
    """The newest ones are; an id from before is not known any more."""
    from store.letters import Letters, Wanted
    from store.recovery import committed

    letters = Letters(lake.root, lambda: committed(lake.store.state, "rejected"))
    before = [letter["id"] for letter in letters.newest_first(Wanted())]
    lake.retain(clock.at)
    after = [letter["id"] for letter in letters.newest_first(Wanted())]
    assert after == before[: len(after)] and 5 <= len(after) < 8
    assert letters.find(before[-1]) is None and letters.find(before[0]) is not None
