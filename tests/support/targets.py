"""Where a feed is sent to in a test, and what a consumer finds there."""

from __future__ import annotations

import asyncio
import json
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.gate import Gate
from tests.support.receiver import Receiver
from tests.support.servers import Server, make_bucket, nats_server, rabbit_server, redis_server, s3_server

if TYPE_CHECKING:
    from confluent_kafka import Consumer
    from obstore.store import S3Store

__all__ = ["TARGETS", "Target"]


class Target:
    """One place. `is_exact`: it takes no message twice. `in_order`: those that come for the first time rise.

    A small `batch` gives many moments to be killed.
    """

    is_exact = True
    in_order = True
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
    def count(self) -> int:
        """How many messages it has been given so far, about a batch less at most; asked while they come."""

    @abstractmethod
    def found(self) -> list[bytes]:
        """Every line that a consumer finds, in its order."""


class RedisTarget(Target):
    def make_server(self) -> Server:
        return redis_server(self.folder)

    def url(self) -> str:
        return f"redis://127.0.0.1:{self.server.port}/0?stream=notifications"

    def count(self) -> int:
        import redis

        with redis.Redis(port=self.server.port) as client:
            return int(client.xlen("notifications"))

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

    def count(self) -> int:
        return asyncio.run(self._count())

    async def _count(self) -> int:
        import nats
        from nats.js.errors import NotFoundError

        client = await nats.connect(f"nats://127.0.0.1:{self.server.port}")
        try:
            return (await client.jsm().stream_info("ONCELAKE")).state.messages
        except NotFoundError:
            return 0
        finally:
            await client.close()

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
    newest = ""

    def make_server(self) -> Server:
        return s3_server(self.folder)

    def prepare(self) -> None:
        make_bucket(self.server.port, "lake")

    def url(self) -> str:
        return f"s3://lake/out?endpoint=http://127.0.0.1:{self.server.port}"

    def store(self) -> S3Store:
        from obstore.store import S3Store

        return S3Store(
            "lake", prefix="out", endpoint=f"http://127.0.0.1:{self.server.port}", region="us-east-1",
            skip_signature=True, client_options={"allow_http": True},
        )  # fmt: skip

    def count(self) -> int:
        import obstore

        listed = obstore.list(self.store(), offset=self.newest) if self.newest else obstore.list(self.store())
        self.newest = max((each["path"] for page in listed for each in page), default=self.newest)
        return first_of(self.newest)

    def found(self) -> list[bytes]:
        import obstore

        store = self.store()
        names = sorted(each["path"] for page in obstore.list(store) for each in page)
        return b"".join(bytes(obstore.get(store, name).bytes()) for name in names).splitlines()


def first_of(name: str) -> int:
    """How many messages lie in the objects before this one."""
    return int(name.removesuffix(".jsonl").rpartition("-")[2] or "1") - 1


class FolderTarget(Target):
    can_die = False
    batch = 2
    options = "linger_s = 0.0\n"

    def start(self) -> None:
        self.out = self.folder / "out"
        self._counted = 0

    def stop(self) -> None:
        pass

    def url(self) -> str:
        return f"file://{self.out}"

    def count(self) -> int:
        while (path := self.out / f"notifications-{self._counted + 1:020d}.jsonl").exists():
            self._counted += path.read_bytes().count(b"\n")  # 50,000 files are not listed each time
        return self._counted

    def found(self) -> list[bytes]:
        return b"".join(path.read_bytes() for path in sorted(self.out.glob("notifications-*.jsonl"))).splitlines()


class RabbitTarget(Target):
    is_exact = False
    in_order = False
    batch = 50

    def make_server(self) -> Server:
        return rabbit_server(self.folder)

    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.server.port}/?exchange=oncelake&routing_key=n&queue=inbox"

    def count(self) -> int:
        return asyncio.run(self._count())

    async def _count(self) -> int:
        import aio_pika
        from aio_pika.exceptions import ChannelNotFoundEntity

        async with await aio_pika.connect(f"amqp://guest:guest@127.0.0.1:{self.server.port}/") as connection:
            channel = await connection.channel()
            try:
                queue = await channel.get_queue("inbox")
            except ChannelNotFoundEntity:
                return 0
            return queue.declaration_result.message_count or 0

    def found(self) -> list[bytes]:
        return asyncio.run(self._found())

    async def _found(self) -> list[bytes]:
        import aio_pika

        found: list[bytes] = []
        async with await aio_pika.connect(f"amqp://guest:guest@127.0.0.1:{self.server.port}/") as connection:
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=1_000)
            queue = await channel.get_queue("inbox")
            async with queue.iterator(no_ack=True, timeout=30) as messages:
                for _ in range(queue.declaration_result.message_count or 0):
                    message = await anext(messages)
                    assert (message.message_id or "").endswith(f"-notifications-{json.loads(message.body)['seq']}")
                    found.append(message.body)
        return found


class KafkaTarget(Target):
    """The mock cluster of librdkafka: it lives in this process and forgets everything when it ends.

    So it is not killed: the way to it is cut, and opened again.
    """

    is_exact = False
    in_order = False  # but of each destination
    batch = 20

    def start(self) -> None:
        from confluent_kafka import Producer

        self.mock = Producer({"test.mock.num.brokers": 1, "log_level": 0})
        self.broker = next(iter(self.mock.list_topics(timeout=10).brokers.values()))
        self.gate = Gate(self.broker.host, self.broker.port)
        self._found: list[bytes] = []
        self._consumer: Consumer | None = None

    def kill(self) -> None:
        self.gate.cut()

    def again(self) -> None:
        self.gate.open()

    def stop(self) -> None:
        self.gate.cut()
        if self._consumer is not None:
            self._consumer.close()
            self._asking.close()
        del self.mock

    def url(self) -> str:
        return f"kafka://127.0.0.1:{self.gate.port}?topic=notifications"

    def count(self) -> int:
        return sum(self._ends())

    def _ends(self) -> list[int]:
        """The offsets that the partitions have reached; none where there is no topic yet."""
        from confluent_kafka import Consumer, TopicPartition

        if self._consumer is None:
            servers = f"{self.broker.host}:{self.broker.port}"
            options = {"bootstrap.servers": servers, "group.id": "test", "auto.offset.reset": "error"}
            asking = Consumer(options)
            topics = asking.list_topics(timeout=10).topics
            if "notifications" not in topics:
                asking.close()
                return []
            self._parts = [TopicPartition("notifications", number, 0) for number in topics["notifications"].partitions]
            self._asking = asking  # of its own: a question waits behind what a reader waits for
            self._consumer = Consumer(options)
            self._consumer.assign(self._parts)
        return [self._asking.get_watermark_offsets(part, timeout=10)[1] for part in self._parts]

    def keep_up(self) -> None:
        """The mock keeps 5 MiB of a partition: what is there now is read before it goes."""
        ends = self._ends()
        if self._consumer is None:
            return
        while any(max(at.offset, 0) < end for at, end in zip(self._consumer.position(self._parts), ends, strict=True)):
            message = self._consumer.poll(10)
            assert message is not None, "the consumer waits for nothing"
            assert message.error() is None, message.error()
            line = json.loads(message.value())
            ((header, identity),) = message.headers()
            assert message.key() == line["record"]["destinationId"].encode()
            assert header == "id" and identity.endswith(b"-notifications-%d" % line["seq"])
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
        self._counted = [0, 0]

    def kill(self) -> None:
        self.receiver.kill()

    def again(self) -> None:
        self.receiver = Receiver(port=self.receiver.port).__enter__()
        self.all.append(self.receiver)

    def stop(self) -> None:
        self.receiver.__exit__()

    def url(self) -> str:
        return self.receiver.url

    def count(self) -> int:
        requests = [request for receiver in self.all for request in receiver.requests]
        done, messages = self._counted
        messages += sum(request.body.count(b'{"specversion"') for request in requests[done:])
        self._counted = [len(requests), messages]
        return messages

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
    "rabbit": RabbitTarget,  # the longest to start first
    "redis": RedisTarget,
    "s3": S3Target,
    "folder": FolderTarget,
    "nats": NatsTarget,
    "kafka": KafkaTarget,
    "webhook": WebhookTarget,
}
