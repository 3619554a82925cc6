"""The receiving end as the README shows it, against the real forwarder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.forwarding import ListSource, drive, lines_of, shipper
from tests.support.receiver import Receiver, Request
from tests.support.servers import redis_server

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def program(word: str) -> str:
    (found,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if word in block)
    return str(found)


def test_the_receiver_of_a_webhook_takes_each_message_once(tmp_path: Path) -> None:
    """Though half of the requests come twice; what is not signed, or signed long ago, is none of ours."""
    space: dict[str, Any] = {}
    exec(compile(program("webhook-signature"), "README.md", "exec"), space)
    seen: set[tuple[str, str]] = set()
    got: list[Any] = []
    flaky = iter([True, False] * 50)

    def receive(request: Request) -> tuple[int, dict[str, str]]:
        got.extend(space["messages"](SECRET, request.headers, request.body, seen))
        return (500 if next(flaky) else 204), {}

    with Receiver(receive) as receiver:
        drive(
            shipper(tmp_path, ListSource(lines_of(1, 50)), receiver.url, batch=10, allow_private=True, secret=SECRET),
            50,
        )
    assert [data["seq"] for data in got] == list(range(1, 51))
    request = receiver.requests[0]
    with pytest.raises(PermissionError):
        space["messages"]("whsec_b3RoZXI=", request.headers, request.body, set())
    with pytest.raises(PermissionError):
        space["messages"](SECRET, request.headers | {"webhook-timestamp": "1700000000"}, request.body, set())


def test_the_consumer_of_a_redis_stream_sees_each_message_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In order, also those that come while it waits."""

    class Done(Exception):
        pass

    source = ListSource(lines_of(1, 1_500))
    with redis_server(tmp_path / "redis") as server:
        ship = shipper(tmp_path, source, f"redis://127.0.0.1:{server.port}/0?stream=notifications")
        drive(ship, 1_500)
        client = redis.Redis(port=server.port)
        xread = client.xread
        more = iter([lines_of(1, 1_500), lines_of(1, 1_500), lines_of(1, 1_600)])

        def reading(*args: Any, **options: Any) -> Any:
            source.lines = next(more, [])
            if not source.lines:
                raise Done
            drive(ship, len(source.lines))
            return xread(*args, **options)

        monkeypatch.setattr(client, "xread", reading)
        monkeypatch.setattr(redis, "Redis", lambda: client)
        with pytest.raises(Done):
            exec(compile(program("xread"), "README.md", "exec"), {})
        client.close()
    told = capsys.readouterr().out.splitlines()
    assert told == [f"{seq}-0 {line.decode()}" for seq, line in lines_of(1, 1_600)]
