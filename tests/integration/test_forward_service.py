"""The forwarder inside the service and beside it: `oncelake forward`."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

from tests.support.receiver import Receiver, Request
from tests.support.servers import free_port
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


def test_a_dead_sink_and_one_that_hangs_delay_no_other_and_no_record(tmp_path: Path) -> None:
    """`/health`, `/metrics` and `oncelake status` tell by how much each is behind, and how often it was tried."""
    config = tmp_path / "oncelake.toml"
    with socket.create_server(("127.0.0.1", 0)) as hanging, Receiver() as receiver:
        urls = {
            "dead": f"http://127.0.0.1:{free_port()}/",
            "hangs": f"http://127.0.0.1:{hanging.getsockname()[1]}/",
            "well": receiver.url,
        }
        config.write_text(
            "".join(f'[[forward]]\nname = "{n}"\nurl = "{url}"\nallow_private = true\n' for n, url in urls.items())
        )
        with Service(tmp_path / "data", config=config) as service:
            for first in range(0, 100, 20):
                assert service.post(batch(first, 20)).json()["accepted"] == 20
            wait_until(lambda: len(receiver.events) == 100)

            def sinks() -> dict[str, Any]:
                found: dict[str, Any] = service.get("/health").json()["components"]["forwarder"]["sinks"]
                return found

            wait_until(lambda: sinks()["dead"]["failures"] >= 2 and sinks()["well"]["lagSeqs"] == 0)
            found = sinks()
            assert (found["dead"]["state"], found["dead"]["lagSeqs"]) == ("retrying", 100)
            assert found["hangs"]["attempts"] >= 1 and found["hangs"]["delivered"] == 0
            assert found["dead"]["lagSeconds"] > 0 and found["hangs"]["lagSeconds"] > 0
            assert (found["well"]["delivered"], found["well"]["failures"], found["well"]["lagSeconds"]) == (100, 0, 0)
            assert metric(service, "lag_seqs", "dead") == 100 and metric(service, "lag_seqs", "well") == 0
            assert metric(service, "lag_seconds", "hangs") > 0 and metric(service, "attempts_total", "hangs") >= 1
            assert metric(service, "failures_total", "dead") >= 2 and metric(service, "ok", "dead") == 0
            told = told_by_status(config, tmp_path / "data")
            assert (told["dead"]["state"], told["dead"]["lagSeqs"], told["dead"]["seq"]) == ("retrying", 100, 0)
            assert told["dead"]["lagSeconds"] > 0 and told["dead"]["failures"] >= 2 and told["dead"]["problem"]
            assert (told["well"]["state"], told["well"]["lagSeqs"], told["well"]["lagSeconds"]) == ("ok", 0, 0)
            assert told["well"]["attempts"] >= 1 and told["well"]["pid"] == str(service.pid)
            assert service.post(batch(100, 20)).json()["accepted"] == 20
            wait_until(lambda: len(receiver.events) == 120)
            assert service.stop() == 0
    assert [event["data"]["seq"] for event in receiver.events] == list(range(1, 121))
    assert told_by_status(config, tmp_path / "data")["dead"]["state"] == "stopped"


def metric(service: Service, name: str, sink: str) -> float:
    """The value of one figure of one sink."""
    (found,) = re.findall(
        rf'^oncelake_forward_{name}{{feed="notifications",sink="{sink}"}} (\S+)$',
        service.get("/metrics").text,
        re.MULTILINE,
    )
    return float(found)


def told_by_status(config: Path, data: Path) -> dict[str, Any]:
    """The sinks of `oncelake status`."""
    shown = oncelake("status", "--config", str(config), data=data)
    assert shown.returncode == 0 and "sink well" in shown.stdout, shown.stderr
    found: dict[str, Any] = json.loads(oncelake("status", "--json", "--config", str(config), data=data).stdout)["sinks"]
    return found


def test_retry_sends_dead_letters_again_alone_and_beside_the_service(tmp_path: Path) -> None:
    """It ends once they are delivered, and the file of the dead letters is gone then."""
    wanted = True

    def answer(request: Request) -> tuple[int, dict[str, str]]:
        return (204 if wanted else 422), {}

    config, data = tmp_path / "oncelake.toml", tmp_path / "data"
    letters = data / "internal/forward/hook.dead.jsonl"

    def retried() -> int:
        return oncelake("forward", "hook", "--retry", "--config", str(config), data=data).returncode

    with Receiver(answer) as receiver:
        config.write_text(
            f'[[forward]]\nname = "hook"\nurl = "{receiver.url}"\nallow_private = true\nattempts = 1\nbatch = 5\n'
        )
        with Service(data, config=config) as service:
            service.post(batch(0, 10))
            wait_until(lambda: len(receiver.events) == 10)
            wanted = False
            service.post(batch(10, 3))
            wait_until(lambda: letters.exists() and letters.read_bytes().count(b"\n") == 3)
            before, wanted = len(receiver.events), True
            assert retried() == 0
            assert [event["id"] for event in receiver.events[before:]] == ["11", "12", "13"] and not letters.exists()
            wanted = False
            service.post(batch(13, 2))
            wait_until(lambda: letters.exists() and letters.read_bytes().count(b"\n") == 2)
            assert service.stop() == 0
        assert [json.loads(line)["seq"] for line in letters.read_bytes().splitlines()] == [14, 15]
        before, wanted = len(receiver.events), True
        assert retried() == 0
        assert [event["id"] for event in receiver.events[before:]] == ["14", "15"] and not letters.exists()


def test_a_webhook_that_said_410_is_enabled_again_by_retry(tmp_path: Path) -> None:
    """Until then nothing is sent, and `--once` says why."""
    wanted = False
    config, data = tmp_path / "oncelake.toml", tmp_path / "data"

    def run(*options: str) -> Any:
        return oncelake("forward", *options, "--config", str(config), data=data)

    with Receiver(lambda request: (204 if wanted else 410, {})) as receiver:
        config.write_text(
            f'[[forward]]\nname = "hook"\nurl = "{receiver.url}"\nallow_private = true\nin_service = false\n'
        )
        with Service(data, config=config) as service:
            service.post(batch(0, 3))
            assert service.stop() == 0
        done = run("--once")
        assert done.returncode == 1 and "410" in done.stderr
        wanted = True
        assert run("--once").returncode == 1 and len(receiver.requests) == 1
        assert run("--retry").returncode == 0
        assert [event["id"] for event in receiver.events[3:]] == ["1", "2", "3"]
