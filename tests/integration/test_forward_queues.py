"""RabbitMQ and Kafka: what a consumer finds, and what counts as delivered."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractRobustConnection

from outbox.forwarder.sinks import kafka
from tests.support.forwarding import STORE, ListSource, drive, lines_of, shipper
from tests.support.servers import Server, rabbit_server
from tests.support.targets import KafkaTarget

COUNT = 2_000


@pytest.fixture(scope="module")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with rabbit_server(tmp_path_factory.mktemp("rabbit")) as server:
        yield server


def rabbit_url(server: Server, options: str) -> str:
    return f"amqp://guest:guest@127.0.0.1:{server.port}/?{options}"


async def connected(server: Server) -> AbstractRobustConnection:
    return await aio_pika.connect_robust(rabbit_url(server, ""))


def messages_of(server: Server, name: str) -> list[Any]:
    """Every message of a queue."""

    async def read() -> list[Any]:
        found = []
        async with await connected(server) as connection:
            queue = await (await connection.channel()).get_queue(name)
            while message := await queue.get(no_ack=True, fail=False):
                found.append(message)
        return found

    return asyncio.run(read())


def test_a_queue_holds_the_feed(tmp_path: Path, rabbit: Server) -> None:
    """In order, to the byte; each message is kept over a restart and says which it is."""
    source = ListSource(lines_of(1, COUNT))
    url = rabbit_url(rabbit, "exchange=oncelake&routing_key=notifications&queue=inbox")
    drive(shipper(tmp_path, source, url), COUNT)
    found = messages_of(rabbit, "inbox")
    assert [message.body for message in found] == [line for _, line in source.lines]
    assert [message.message_id for message in found] == [f"{STORE}-notifications-{seq}" for seq, _ in source.lines]
    assert {(message.delivery_mode, message.content_type, message.type) for message in found} == {
        (aio_pika.DeliveryMode.PERSISTENT, "application/json", "oncelake.notification")
    }


def test_without_an_exchange_the_routing_key_names_a_queue(tmp_path: Path, rabbit: Server) -> None:
    """It is made where it is missing."""
    drive(shipper(tmp_path, ListSource(lines_of(1, 5)), rabbit_url(rabbit, "routing_key=plain")), 5)
    assert len(messages_of(rabbit, "plain")) == 5


def test_a_message_that_no_queue_takes_is_not_delivered(tmp_path: Path, rabbit: Server) -> None:
    """A broker confirms and drops it: the sink waits until a queue is bound. An exchange that is there is used."""

    async def declare(bind: bool) -> None:
        async with await connected(rabbit) as connection:
            channel = await connection.channel()
            exchange = await channel.declare_exchange("topics", aio_pika.ExchangeType.TOPIC, durable=True)
            if bind:
                await (await channel.declare_queue("late", durable=True)).bind(exchange, "on.#")

    asyncio.run(declare(bind=False))
    url = rabbit_url(rabbit, "exchange=topics&routing_key=on.notifications")
    ship = shipper(tmp_path, ListSource(lines_of(1, 10)), url)
    for _ in range(3):
        ship._clock.at += ship.step()  # type: ignore[attr-defined]
    assert ship.shipped == 0 and ship.status().failures == 3
    assert "for no queue" in ship.status().problem and "guest:guest" not in ship.status().problem
    asyncio.run(declare(bind=True))
    drive(ship, 10)
    assert [json.loads(message.body)["seq"] for message in messages_of(rabbit, "late")] == list(range(1, 11))


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[KafkaTarget]:
    target = KafkaTarget(tmp_path)
    target.start()
    yield target
    target.stop()


def test_a_topic_holds_the_feed_in_the_order_of_each_destination(
    tmp_path: Path, broker: KafkaTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an idempotent producer; the key of a message is its destinationId, and a header says which it is."""
    made: list[dict[str, Any]] = []
    producer = kafka.Producer

    def making(config: dict[str, Any]) -> Any:
        made.append(config)
        return producer(config)

    monkeypatch.setattr(kafka, "Producer", making)
    source = ListSource(lines_of(1, COUNT))
    drive(shipper(tmp_path, source, broker.url()), COUNT)
    assert [config["enable.idempotence"] for config in made] == [True]
    found = broker.found()  # looks at keys and headers
    assert sorted(found) == sorted(line for _, line in source.lines)
    seqs: dict[str, list[int]] = defaultdict(list)
    for message in map(json.loads, found):
        seqs[message["record"]["destinationId"]].append(message["seq"])
    assert len(seqs) == 7 and all(each == sorted(each) for each in seqs.values())


def test_a_broker_that_cannot_be_reached_is_tried_again(tmp_path: Path, broker: KafkaTarget) -> None:
    """The feed is there as a whole afterwards."""
    source = ListSource(lines_of(1, 40))
    ship = shipper(tmp_path, source, broker.url(), batch=20)
    drive(ship, 40)
    broker.kill()
    source.lines = lines_of(1, 80)
    ship._clock.at += ship.step()  # type: ignore[attr-defined]
    assert ship.status().state == "retrying" and ship.shipped == 40
    broker.again()
    drive(ship, 80)
    assert set(broker.found()) == {line for _, line in source.lines}
