"""Health: each component is broken on purpose, and says so; the service answers 503 then, and 200 again afterwards."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import service.health
import store.files
from outbox.forwarder.settings import Forward
from service.config import Config, StoreConfig
from service.runtime import Lake
from store.errors import DiskFullError
from store.outcomes import Reply
from store.promise import Promise
from tests.support.feeds import body_of


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    lake = Lake(Config(store=StoreConfig(data_dir=str(tmp_path / "data"), flush_interval_s=0.05)))
    lake.start()
    yield lake
    lake.stop()


def status(lake: Lake, component: str = "store") -> str:
    return str(lake.health()[component]["status"])


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def post(lake: Lake, first: int) -> Promise[Reply]:
    return lake.intake.submit(body_of(first, 5), "application/json", None, atomic=False, dry_run=False, request_id="r")


def test_all_is_well(lake: Lake) -> None:
    """With records, before and after they are flushed."""
    post(lake, 0).result(20)
    wait_until(lambda: lake.store.flushed == 5)
    assert {name: component["status"] for name, component in lake.health().items()} == {
        "store": "ok",
        "inbox": "ok",
        "forwarder": "ok",
    }


def test_a_damaged_checkpoint_of_a_sink(tmp_path: Path) -> None:
    """Is told with its sink; the health of everything else is told as before."""
    sink = Forward("billing", "http://127.0.0.1:9/")
    lake = Lake(Config(store=StoreConfig(data_dir=str(tmp_path / "data")), forward=[sink]))
    path = tmp_path / "data/internal/forward/billing.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"garbage")
    lake.start()
    try:
        wait_until(lambda: lake.forwarder.statuses()[0].state == "retrying")
        health = lake.health()
    finally:
        lake.stop()
    assert {name: component["status"] for name, component in health.items()} == {
        "store": "ok", "inbox": "ok", "forwarder": "ok",
    }  # fmt: skip
    assert f"{path} is damaged" in str(health["forwarder"]["sinks"])


def test_a_commit_that_hangs_in_a_sync(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that does not answer is seen by what waits for it."""
    answers = threading.Event()
    sync = os.fdatasync

    def hang(handle: int) -> None:
        if threading.current_thread().name == "committer":
            answers.wait(20)
        sync(handle)

    monkeypatch.setattr(service.health, "_LONGEST_COMMIT_S", 0.2)
    monkeypatch.setattr(store.files.os, "fdatasync", hang)
    reply = post(lake, 0)
    wait_until(lambda: "a commit has been under way" in status(lake))
    answers.set()
    assert reply.result(20).answer.accepted == 5
    wait_until(lambda: status(lake) == "ok")


def test_a_flush_that_does_not_come(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hot rows that wait for too long."""
    goes_on = threading.Event()
    flush = lake.store.flush_once
    monkeypatch.setattr(service.health, "_LATEST_FLUSH_S", 0.2)
    monkeypatch.setattr(lake.store, "flush_once", lambda *waited: (goes_on.wait(20), flush(*waited))[1])
    time.sleep(0.1)
    post(lake, 0).result(20)
    wait_until(lambda: "too long to be put into Parquet" in status(lake))
    goes_on.set()
    wait_until(lambda: status(lake) == "ok")


def test_a_flush_that_fails_for_want_of_room(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so while it tries again."""
    with monkeypatch.context() as patch:

        def full(*waited: object) -> int:
            raise DiskFullError("no room to flush")

        patch.setattr(lake.store, "flush_once", full)
        wait_until(lambda: "no room to flush" in status(lake))
    wait_until(lambda: status(lake) == "ok")


def test_a_device_that_is_nearly_full(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes and inodes, before they are used up."""
    found = os.statvfs(lake.store.root)

    def device(bavail: int, favail: int) -> None:
        values = list(found)
        values[4], values[7] = bavail, favail
        monkeypatch.setattr(service.health.os, "statvfs", lambda path: os.statvfs_result(values))

    device(1, 10_000)
    assert "bytes are free on the device" in status(lake) and "make room" in status(lake)
    device(10**9, 99)
    assert "99 inodes are free" in status(lake)
    device(10**9, 10_000)
    assert status(lake) == "ok"
    device(1, 10_000)
    assert service.health.lack_of_room(lake.store.root, 0) is None


def test_a_store_that_has_stopped(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed sync is final."""
    sync = os.fdatasync

    def fail(handle: int) -> None:
        if threading.current_thread().name == "committer":
            raise OSError(5, "Input/output error")
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(store.files.os, "fdatasync", fail)
        with pytest.raises(Exception, match="outcome is known after a restart"):
            post(lake, 0).result(20)
    assert "Input/output error" in status(lake)


def test_a_scrubber_that_has_ended(lake: Lake) -> None:
    """Nobody would find rot any more."""
    assert status(lake) == "ok"
    lake.scrubber.stop()
    assert status(lake).startswith("nobody looks for rot any more")
