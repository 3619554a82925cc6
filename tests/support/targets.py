"""Where a feed is sent to in a test, and what a consumer finds there."""

from __future__ import annotations

import asyncio
import json
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.receiver import Receiver
from tests.support.servers import Server, make_bucket, nats_server, rabbit_server, redis_server, s3_server

if TYPE_CHECKING:
    from confluent_kafka import Consumer

__all__ = ["TARGETS", "Target"]


class Target:
    """One place. `is_exact`: it takes no message twice. A small `batch` gives many moments to be killed."""

    is_exact = True
    can_die = True
    batch = 5
    options = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self) -> None:
        """The server, ready to take messages."""
        self.server = self.make_server()
        self.server.start()
        self.prepare()

    def make_server(self) -> Server:
        raise NotImplementedError

    def prepare(self) -> None:
        """Once, after the first start."""

    def kill(self) -> None:
        self.server.kill()

    def again(self) -> None:
        """Start it after a kill, on the same port."""
        self.server.start()

    def stop(self) -> None:
        self.server.stop()

    def keep_up(self) -> None:
        """What a consumer does meanwhile, where the server does not keep everything."""

    @abstractmethod
    def url(self) -> str: ...

    @abstractmethod
    def found(self) -> list[bytes]:
        """Every line that a consumer finds, in its order."""


class RedisTarget(Target):
    def make_server(self) -> Server:
        return redis_server(self.folder)

    def url(self) -> str:
        return f"redis://127.0.0.1:{self.server.port}/0?stream=notifications"

    def found(self) -> list[bytes]:
        import redis

        with redis.Redis(port=self.server.port) as client:
            entries = client.xrange("notifications")
            for entry, fields in entries:
                assert entry == b"%d-0" % json.loads(fields[b"data"])["seq"]
            return [fields[b"data"] for _, fields in entries]


class NatsTarget(Target):
    def make_server(self) -> Server:
        return nats_server(self.folder)

    def url(self) -> str:
        return f"nats://127.0.0.1:{self.server.port}?stream=ONCELAKE&subject=oncelake.notifications"

    def found(self) -> list[bytes]:
        return asyncio.run(self._found())

    async def _found(self) -> list[bytes]:
        import nats

        client = await nats.connect(f"nats://127.0.0.1:{self.server.port}")
        try:
            stream = client.jetstream()
            count = (await stream.stream_info("ONCELAKE")).state.messages
            reader = await stream.subscribe("oncelake.notifications", ordered_consumer=True)
            return [(await reader.next_msg(timeout=30)).data for _ in range(count)]
        finally:
            await client.close()


class S3Target(Target):
    batch = 25
    options = "linger_s = 0.0\n"

    def make_server(self) -> Server:
        return s3_server(self.folder)

    def prepare(self) -> None:
        make_bucket(self.server.port, "lake")

    def url(self) -> str:
        return f"s3://lake/out?endpoint=http://127.0.0.1:{self.server.port}"

    def found(self) -> list[bytes]:
        import obstore
        from obstore.store import S3Store

        endpoint = f"http://127.0.0.1:{self.server.port}"
        store = S3Store(
            "lake", prefix="out", endpoint=endpoint, region="us-east-1", skip_signature=True,
            client_options={"allow_http": True},
        )  # fmt: skip
        names = sorted(each["path"] for page in obstore.list(store) for each in page)
        return b"".join(bytes(obstore.get(store, name).bytes()) for name in names).splitlines()


class FolderTarget(Target):
    can_die = False
    batch = 2
    options = "linger_s = 0.0\n"

    def start(self) -> None:
        self.out = self.folder / "out"

    def stop(self) -> None:
        pass

    def url(self) -> str:
        return f"file://{self.out}"

    def found(self) -> list[bytes]:
        return b"".join(path.read_bytes() for path in sorted(self.out.glob("notifications-*.jsonl"))).splitlines()


class RabbitTarget(Target):
    is_exact = False
    batch = 50

    def make_server(self) -> Server:
        return rabbit_server(self.folder)

    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.server.port}/?exchange=oncelake&routing_key=n&queue=inbox"

    def found(self) -> list[bytes]:
        return asyncio.run(self._found())

    async def _found(self) -> list[bytes]:
        import aio_pika

        found: list[bytes] = []
        async with await aio_pika.connect(f"amqp://guest:guest@127.0.0.1:{self.server.port}/") as connection:
            channel = await connection.channel()
            queue = await channel.get_queue("inbox")
            while message := await queue.get(no_ack=True, fail=False):
                assert (message.message_id or "").endswith(f"-notifications-{json.loads(message.body)['seq']}")
                found.append(message.body)
        return found


class KafkaTarget(Target):
    """The mock cluster of librdkafka: it lives in this process and forgets everything when it ends."""

    is_exact = False
    can_die = False
    batch = 50

    def start(self) -> None:
        from confluent_kafka import Producer

        self.mock = Producer({"test.mock.num.brokers": 1, "log_level": 0})
        self.broker = next(iter(self.mock.list_topics(timeout=10).brokers.values()))

        self._found: list[bytes] = []
        self._consumer: Consumer | None = None

    def stop(self) -> None:
        if self._consumer is not None:
            self._consumer.close()
        del self.mock

    def url(self) -> str:
        return f"kafka://{self.broker.host}:{self.broker.port}?topic=notifications"

    def keep_up(self) -> None:
        """The mock keeps 5 MiB of a partition: what is there now is read before it goes."""
        from confluent_kafka import Consumer, TopicPartition

        if self._consumer is None:
            servers = f"{self.broker.host}:{self.broker.port}"
            consumer = Consumer({"bootstrap.servers": servers, "group.id": "test", "auto.offset.reset": "error"})
            topics = consumer.list_topics(timeout=10).topics
            if "notifications" not in topics:
                consumer.close()
                return
            self._parts = [TopicPartition("notifications", number, 0) for number in topics["notifications"].partitions]
            consumer.assign(self._parts)
            self._consumer = consumer
        ends = [self._consumer.get_watermark_offsets(part, timeout=10)[1] for part in self._parts]
        while any(max(at.offset, 0) < end for at, end in zip(self._consumer.position(self._parts), ends, strict=True)):
            message = self._consumer.poll(10)
            assert message is not None, "the consumer waits for nothing"
            assert message.error() is None, message.error()
            assert message.key() == json.loads(message.value())["record"]["destinationId"].encode()
            self._found.append(message.value())

    def found(self) -> list[bytes]:
        self.keep_up()
        return self._found


class WebhookTarget(Target):
    is_exact = False
    options = "allow_private = true\n"

    def start(self) -> None:
        self.receiver = Receiver().__enter__()
        self.all = [self.receiver]

    def kill(self) -> None:
        self.receiver.__exit__()

    def again(self) -> None:
        self.receiver = Receiver(port=self.receiver.port).__enter__()
        self.all.append(self.receiver)

    def stop(self) -> None:
        self.receiver.__exit__()

    def url(self) -> str:
        return self.receiver.url

    def found(self) -> list[bytes]:
        found = []
        for receiver in self.all:
            for request in receiver.requests:
                pieces = request.body.split(b'"datacontenttype":"application/json","data":')[1:]
                lines = [piece.rpartition(b',{"specversion"')[0] or piece for piece in pieces]
                lines = [line.removesuffix(b"]").removesuffix(b"}") for line in lines]
                assert [event["id"] for event in request.events] == [str(json.loads(line)["seq"]) for line in lines]
                found += lines
        return found


TARGETS: dict[str, Callable[[Path], Target]] = {
    "redis": RedisTarget,
    "nats": NatsTarget,
    "s3": S3Target,
    "folder": FolderTarget,
    "rabbit": RabbitTarget,
    "kafka": KafkaTarget,
    "webhook": WebhookTarget,
}
