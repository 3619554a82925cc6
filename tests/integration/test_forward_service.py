"""The forwarder inside the service and beside it: `oncelake forward`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.service import Service, oncelake, wait_until

RECORD = {
    "recordId": "r", "time": "2024-03-01T12:00:00Z", "sourceId": "s", "destinationId": "d",
    "type": "positive", "value": "20000", "unit": "SEK", "reference": "x",
}  # fmt: skip


def batch(first: int, count: int) -> bytes:
    return json.dumps([RECORD | {"recordId": f"r{number}"} for number in range(first, first + count)]).encode()


def configured(tmp_path: Path, more: str = "") -> Path:
    """A folder for each feed."""
    path = tmp_path / "oncelake.toml"
    path.write_text(
        "".join(
            f'[[forward]]\nname = "{feed}"\nfeed = "{feed}"\nurl = "file://{tmp_path}/out"\nlinger_s = 0.1\n{more}'
            for feed in ("notifications", "alerts")
        )
    )
    return path


def outbox(data: Path, feed: str) -> bytes:
    return b"".join(path.read_bytes() for path in sorted((data / "outbox" / feed).glob("*.jsonl")))


def shipped(tmp_path: Path, feed: str) -> bytes:
    return b"".join(path.read_bytes() for path in sorted((tmp_path / "out").glob(f"{feed}-*.jsonl")))


def test_the_service_ships_and_says_how_far(tmp_path: Path) -> None:
    """Both feeds, across a kill, to the byte; `/health` shows each sink."""
    service = Service(tmp_path / "data", config=configured(tmp_path))
    with service:
        service.post(batch(0, 50))
        wait_until(lambda: shipped(tmp_path, "alerts").count(b"\n") == 50)
        service.kill()
        service.start()
        service.post(batch(50, 30))
        wait_until(lambda: shipped(tmp_path, "alerts").count(b"\n") == 80)
        wait_until(lambda: shipped(tmp_path, "notifications").count(b"\n") == 80)
        sinks = service.get("/health").json()["components"]["forwarder"]
        assert sinks["status"] == "ok" and sinks["sinks"]["alerts"]["state"] == "ok"
        wait_until(lambda: service.get("/health").json()["components"]["forwarder"]["sinks"]["alerts"]["lagSeqs"] == 0)
        assert service.stop() == 0
    for feed in ("notifications", "alerts"):
        assert shipped(tmp_path, feed) == outbox(tmp_path / "data", feed)
    checkpoint = json.loads((tmp_path / "data/internal/forward/alerts.json").read_bytes())
    assert (checkpoint["seq"], checkpoint["sent"]) == (80, 80)


def test_once_beside_a_service_that_ships_nothing_itself(tmp_path: Path) -> None:
    """It sends what is committed, and the next time what came since; a sink that cannot be reached is exit code 1."""
    config = configured(tmp_path, "in_service = false\n")
    with Service(tmp_path / "data", config=config) as service:
        assert service.post(batch(0, 20)).json()["lastSeq"] == 20
        wait_until(
            lambda: json.loads((tmp_path / "data/outbox/notifications/committed.json").read_bytes())["seq"] == 20
        )
        for _ in range(2):
            done = oncelake("forward", "--once", "--config", str(config), data=tmp_path / "data")
            assert done.returncode == 0, done.stderr
        assert "notifications: seq 20" in done.stdout
        assert shipped(tmp_path, "notifications") == outbox(tmp_path / "data", "notifications")
        config.write_text(config.read_text().replace(f"file://{tmp_path}/out", "redis://127.0.0.1:1/0?stream=x", 1))
        failed = oncelake("forward", "notifications", "--once", "--config", str(config), data=tmp_path / "data")
        assert failed.returncode == 1 and "notifications: failed at seq 20" in failed.stderr


def test_once_where_the_service_ships_waits_for_it(tmp_path: Path) -> None:
    """Two processes never ship for one sink: the one that comes second watches the checkpoint."""
    config = configured(tmp_path)
    with Service(tmp_path / "data", config=config) as service:
        service.post(batch(0, 20))
        done = oncelake("forward", "--once", "--config", str(config), data=tmp_path / "data")
        assert done.returncode == 0, done.stderr
        assert shipped(tmp_path, "notifications").count(b"\n") == 20


def test_what_cannot_be_asked_for_is_said(tmp_path: Path) -> None:
    """No table, no such sink, no such store."""
    assert "[[forward]]" in oncelake("forward", data=tmp_path / "data").stderr
    config = configured(tmp_path)
    done = oncelake("forward", "alert", "--config", str(config), data=tmp_path / "data")
    assert done.returncode == 2 and "known are notifications, alerts" in done.stderr
    done = oncelake("forward", "--once", "--config", str(config), data=tmp_path / "data")
    assert done.returncode == 1 and "no data directory" in done.stderr
