"""Backups: of a running service under load, of a stopped one, after a kill; refused where they could not be right."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

import store.backup
from outbox.feed import Feed, source_beside
from outbox.forwarder.shipper import Shipper
from outbox.forwarder.sink import Message, Rejected
from store.backup import PARTIAL, back_up
from store.errors import CorruptionError, OncelakeError
from store.files import Disk
from store.filters import Filters
from store.verify import verify
from tests.support.forwarding import PlainSink, drive, shipper
from tests.support.lake import Lake
from tests.support.service import Service, oncelake, wait_until


def record(number: int, **fields: object) -> dict[str, object]:
    return {
        "recordId": f"rec-{number}",
        "time": f"2024-03-{1 + number % 3:02}T12:00:00Z",
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


def contents(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file with its times and bytes."""
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes())
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Three flushes, merged runs, hot rows, dead letters, a file with its receipt."""
    lake = Lake(tmp_path / "data", threshold="100", segment_bytes=3_000)
    for first in (0, 20, 40, 60):
        lake.post(batch(first, 20))
        lake.store.flush_once()
        while lake.store.tiers.merge_once():
            pass
    lake.post(json.dumps([record(1, value="7"), record(900, value="-1")]).encode())
    lake.drop("file.ndjson", b"".join(json.dumps(record(number)).encode() + b"\n" for number in range(100, 110)))
    while lake.inbox.run_once():
        pass
    lake.post(batch(200, 7))
    return lake


def test_a_backup_of_a_stopped_service_is_served_elsewhere(lake: Lake, tmp_path: Path) -> None:
    """Same answers, same outboxes, same receipts, clean; the source keeps every byte and time."""
    expected = lake.aggregate(Filters())
    lines = {feed: lake.lines(feed) for feed in ("notifications", "alerts")}
    lake.close()
    before = contents(lake.root)
    report = back_up(lake.root, tmp_path / "copy", Disk())
    assert contents(lake.root) == before
    assert report.seq == 97 and report.flushed == 80
    shutil.rmtree(lake.root)
    assert verify(tmp_path / "copy").to_json()["differences"] == []
    served = Lake(tmp_path / "copy", threshold="100", segment_bytes=3_000)
    assert served.aggregate(Filters()) == expected
    assert {feed: served.lines(feed) for feed in lines} == lines
    assert served.receipt("file.ndjson")["accepted"] == 10
    assert served.answer(served.post(batch(195, 8)))["duplicate"] == 3
    served.close()
    assert verify(tmp_path / "copy").ok


def test_a_plain_copy_of_a_stopped_service_is_served_elsewhere(lake: Lake, tmp_path: Path) -> None:
    """As `cp -a` makes it: hard links of private names become files of their own, which is as good."""
    expected = lake.aggregate(Filters())
    lake.close()
    shutil.copytree(lake.root, tmp_path / "copy", symlinks=True)
    shutil.rmtree(lake.root)
    assert verify(tmp_path / "copy").ok
    served = Lake(tmp_path / "copy", threshold="100", segment_bytes=3_000)
    assert served.aggregate(Filters()) == expected
    served.close()
    assert verify(tmp_path / "copy").ok


def test_a_file_under_way_goes_on_in_the_copy(lake: Lake, tmp_path: Path) -> None:
    """What the inbox had begun is in the backup: the copy finishes it, and its receipt counts all of it."""
    lines = b"".join(json.dumps(record(number)).encode() + b"\n" for number in range(300, 350))
    lake.drop("long.ndjson", lines)
    lake.drop("waiting.ndjson", lines)
    (lake.root / "inbox" / "waiting.ndjson").rename(lake.root / "inbox" / ".hidden")
    commit = lake.store.commit
    begun = threading.Event()

    def stop_after_the_first(wanted: object) -> None:
        if begun.is_set():
            raise OncelakeError("enough")
        commit(wanted)  # type: ignore[arg-type]
        begun.set()

    lake.store.commit = stop_after_the_first  # type: ignore[method-assign]
    lake.inbox.run_once()
    state = lake.store.state.inputs["long.ndjson"]
    assert not state.done and 0 < state.answer.accepted < 50
    back_up(lake.root, tmp_path / "copy", Disk())
    assert [path.name for path in (tmp_path / "copy" / "inbox").iterdir()] == ["long.ndjson"]
    lake.close()
    served = Lake(tmp_path / "copy", threshold="100", segment_bytes=3_000)
    while served.inbox.run_once():
        pass
    assert served.receipt("long.ndjson")["accepted"] == 50
    served.close()
    assert verify(tmp_path / "copy").ok


def test_backups_of_a_running_service_are_whole_whatever_it_does(tmp_path: Path) -> None:
    """It flushes, merges and takes records all the while; every copy verifies, and holds what was answered before."""
    settings = {"oncelake_store__flush_interval_s": "0.05", "oncelake_store__compact_grace_s": "0.1"}
    with Service(tmp_path / "data", **settings) as service:
        done = threading.Event()

        def post() -> None:
            first = 10_000
            while not done.is_set():
                assert service.post(batch(first, 50)).status_code == 200
                first += 50

        poster = threading.Thread(target=post)
        poster.start()
        try:
            for number in range(4):
                answered = service.post(json.dumps(record(number)).encode()).json()["seq"]
                made = oncelake("backup", str(tmp_path / f"copy-{number}"), data=tmp_path / "data")
                assert made.returncode == 0, made.stderr
                report = verify(tmp_path / f"copy-{number}")
                assert report.ok, report.to_json()
                assert report.as_of >= answered
        finally:
            done.set()
            poster.join()
        service.kill()
    made = oncelake("backup", str(tmp_path / "after-kill"), data=tmp_path / "data")
    assert made.returncode == 0, made.stderr
    with Service(tmp_path / "after-kill") as served:
        assert served.get("/records/rec-3").status_code == 200
        wait_until(lambda: served.get("/health").json()["status"] == "ok")
        assert served.stop() == 0
    assert verify(tmp_path / "after-kill").ok


def test_files_that_vanish_are_taken_from_a_fresh_view(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where files cannot be held open, a merge in the middle of the copy takes some away: it goes on, and is whole."""
    monkeypatch.setattr("store.holding._room_for", lambda files: 0)
    for first in (500, 520, 540):
        lake.post(batch(first, 20))
        lake.store.flush_once()
    disk = Disk()
    write, writes = disk.write, []

    def write_and_merge(path: Path, data: object, **options: bool) -> None:
        write(path, data, **options)  # type: ignore[arg-type]
        writes.append(path)
        if len(writes) == 1:
            lake.post(batch(560, 20))
            lake.store.flush_once()
            while lake.store.tiers.merge_once():
                pass

    disk.write = write_and_merge  # type: ignore[method-assign]
    report = back_up(lake.root, tmp_path / "copy", disk)
    assert report.seq == 177
    assert verify(tmp_path / "copy").ok
    on_disk = [path for path in (tmp_path / "copy").rglob("*") if path.is_file()]
    assert len(on_disk) == report.files
    lake.close()


def giving_up(lake: Lake, sink: PlainSink) -> Shipper:
    """A sink that took 1 to 97 but for 10 and 20, which are dead letters."""

    def picky(messages: Sequence[Message]) -> None:
        if {10, 20} & {message.seq for message in messages}:
            raise Rejected("no")

    sink.answer = picky
    ship = shipper(lake.root, feed_of(lake.root), sink=sink, attempts=1)
    drive(ship, 97)
    sink.answer = lambda messages: None
    return ship


def feed_of(root: Path) -> Feed:
    return Feed("notifications", source_beside(root, "notifications", root / "internal" / "tmp"))


def test_messages_that_a_sink_gave_up_can_be_sent_from_the_copy(lake: Lake, tmp_path: Path) -> None:
    """Its checkpoint calls them done, so its dead letters must be there too."""
    lake.close()
    first, sink = PlainSink(), PlainSink()
    giving_up(lake, first).close()
    back_up(lake.root, tmp_path / "copy", Disk())
    shutil.rmtree(lake.root)
    ship = shipper(tmp_path / "copy", feed_of(tmp_path / "copy"), sink=sink, attempts=1)
    ship.desk.ask_to_retry()
    drive(ship, 97)
    ship.close()
    assert [message.seq for message in sink.again] == [10, 20] and sink.got == []
    assert not (tmp_path / "copy/internal/forward/sink.dead.jsonl").exists()


@pytest.mark.parametrize("at", ["checkpoint", "letters"])
def test_a_sink_that_goes_on_during_a_backup_loses_no_dead_letter(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Whatever it does between the reading of its two files: send letters again and clear them, or give up more."""
    lake.close()
    first, sink = PlainSink(), PlainSink()
    ship = giving_up(lake, first)
    ship._width = 1
    ship.desk.ask_to_retry()
    while not first.again:
        ship._clock.at += ship.step()  # type: ignore[attr-defined]
    assert ship._checkpoint is not None and ship._checkpoint.resent > 0
    name = "_bytes_of" if at == "checkpoint" else "_opened"
    read = getattr(store.backup, name)
    done = False

    def and_then(path: Path) -> object:
        nonlocal done
        found = read(path)
        if not done:
            done = True
            drive(ship, 97)
            ship.desk.bury([Message(30, b'{"seq":30}')], "later")
        return found

    monkeypatch.setattr(store.backup, name, and_then)
    back_up(lake.root, tmp_path / "copy", Disk())
    ship.close()
    again = shipper(tmp_path / "copy", feed_of(tmp_path / "copy"), sink=sink, attempts=1)
    again.desk.ask_to_retry()
    drive(again, 97)
    again.close()
    assert [message.seq for message in sink.again] == [30]


def test_a_target_that_would_not_do_is_refused(lake: Lake, tmp_path: Path) -> None:
    """With a sentence that says why, before a byte is written."""
    lake.close()
    taken, partial = tmp_path / "taken", tmp_path / f"begun{PARTIAL}"
    taken.mkdir()
    (taken / "file").write_text("")
    partial.mkdir()
    for target, why in (
        (taken, "is not empty"),
        (taken / "file", "is no directory"),
        (lake.root / "copy", "cannot be in"),
        (tmp_path, "cannot be in"),
        (tmp_path / "begun", "interrupted"),
    ):
        with pytest.raises(OncelakeError, match=why):
            back_up(lake.root, target, Disk())
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"begun{PARTIAL}", "data", "taken"]
    with pytest.raises(OncelakeError, match="no data directory"):
        back_up(taken, tmp_path / "new", Disk())
    empty = tmp_path / "empty"
    empty.mkdir()
    back_up(lake.root, empty, Disk())
    assert verify(empty).ok


def test_rot_is_not_backed_up(lake: Lake, tmp_path: Path) -> None:
    """A changed byte of the source fails the backup, names the file, and leaves nothing that looks like a copy."""
    lake.close()
    path = sorted(lake.root.glob("records/**/*.parquet"))[1]
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match=path.name):
        back_up(lake.root, tmp_path / "copy", Disk())
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


def test_a_backup_that_fails_leaves_nothing(lake: Lake, tmp_path: Path) -> None:
    """No room on the target: what was written goes away, the source is as it was."""
    lake.close()
    before = contents(lake.root)
    disk = Disk()

    def full(path: Path, data: object, **options: bool) -> None:
        raise OSError(28, os.strerror(28), str(path))

    disk.write = full  # type: ignore[method-assign]
    with pytest.raises(OSError, match="No space"):
        back_up(lake.root, tmp_path / "copy", disk)
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]
    assert contents(lake.root) == before
