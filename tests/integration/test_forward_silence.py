"""A server that says nothing: one that is not there, one that never answers, one that stops in mid-stream."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from outbox.forwarder.settings import Forward
from outbox.forwarder.sink import TIMEOUT_S, Found, Message, Sink, Undelivered
from outbox.forwarder.sinks.jetstream import JetStream
from outbox.forwarder.sinks.kafka import Kafka
from outbox.forwarder.sinks.objects import ObjectSink
from outbox.forwarder.sinks.rabbit import Rabbit
from outbox.forwarder.sinks.redis_sink import RedisSink
from outbox.forwarder.sinks.s3 import S3Bucket
from tests.support.forwarding import STORE, lines_of
from tests.support.servers import free_port
from tests.support.targets import TARGETS

SHORT_S = 2.0
WITHIN_S = 9.0
"""Some of them ask twice, and the machine may be slow; a sink that waited for its usual time would take longer."""


def of_s3(table: Forward) -> Sink:
    return ObjectSink(S3Bucket(table, timeout_s=SHORT_S), table.feed)


SINKS: dict[str, tuple[str, Callable[[Forward], Sink]]] = {
    "redis": ("redis://127.0.0.1:{port}/0?stream=n", lambda table: RedisSink(table, timeout_s=SHORT_S)),
    "nats": ("nats://127.0.0.1:{port}?stream=N&subject=n", lambda table: JetStream(table, STORE, timeout_s=SHORT_S)),
    "rabbit": ("amqp://u:p@127.0.0.1:{port}/?routing_key=n", lambda table: Rabbit(table, STORE, timeout_s=SHORT_S)),
    "kafka": ("kafka://127.0.0.1:{port}?topic=n", lambda table: Kafka(table, STORE, timeout_s=SHORT_S)),
    "s3": ("s3://b/p?endpoint=http://127.0.0.1:{port}", of_s3),
}


def test_a_request_has_ten_seconds() -> None:
    """What the sinks here are given less of."""
    assert TIMEOUT_S == 10.0


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that takes connections, reads, and never answers."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def take() -> None:
            while True:
                try:
                    taken.append(listener.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    for each in taken:
        each.close()


def left_in_time(work: Callable[[], Any], sink: Sink) -> str:
    """It raises, and lets go, long before a usual request would; with which words."""
    began = time.monotonic()
    with pytest.raises(Undelivered) as error:
        work()
    sink.close()
    assert time.monotonic() - began < WITHIN_S
    return str(error.value)


@pytest.mark.parametrize("name", SINKS)
def test_a_server_that_never_answers_is_left_in_time(name: str, silent: int) -> None:
    """By its sink, so that the other sinks and a stop need not wait (webhooks: see their own tests)."""
    url, make = SINKS[name]
    sink = make(Forward("n", url.format(port=silent)))
    left_in_time(sink.open, sink)


@pytest.mark.parametrize("name", SINKS)
def test_a_server_that_is_not_there_is_left_in_time(name: str) -> None:
    """At once where its client says so: what comes then is the waiting of the forwarder, and no other."""
    url, make = SINKS[name]
    sink = make(Forward("n", url.format(port=free_port())))
    why = left_in_time(sink.open, sink)
    assert re.search("(?i)refused|connect call failed|transport failure|error sending request", why)


@pytest.mark.parametrize("name", [name for name in SINKS if name != "kafka"])
def test_a_server_that_stops_in_mid_stream_is_left_in_time(tmp_path: Path, name: str) -> None:
    """And asked where it stands, if it can tell, once it goes on: it may have taken what it did not acknowledge."""
    target = TARGETS[name](tmp_path)
    target.start()
    try:
        table = Forward("n", target.url())
        messages = [Message(seq, line) for seq, line in lines_of(1, 6)]
        with contextlib.closing(SINKS[name][1](table)) as sink:
            sink.open()
            sink.send(messages[:3])
            target.server.freeze()
            left_in_time(lambda: sink.send(messages[3:]), sink)
        target.server.thaw()
        with contextlib.closing(SINKS[name][1](table)) as again:
            found = again.open()
            assert (found is None) if name == "rabbit" else found in [Found(*messages[2]), Found(*messages[5])]
    finally:
        target.server.thaw()
        target.stop()
