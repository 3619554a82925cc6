"""From a `[[forward]]` table to its sink. The client library is imported here, and only for what is configured."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from outbox.forwarder.settings import Forward
from outbox.forwarder.sink import Sink
from store.files import Disk

__all__ = ["make_sink"]


def make_sink(table: Forward, store_id: str, disk: Disk) -> Sink:
    """A new sink, not yet connected."""
    kind = table.kind
    if kind == "redis":
        from outbox.forwarder.sinks.redis_sink import RedisSink

        return RedisSink(table)
    if kind == "webhook":
        from outbox.forwarder.sinks.webhook import Webhook

        return Webhook(table, store_id)
    if kind == "nats":
        from outbox.forwarder.sinks.jetstream import JetStream

        return JetStream(table, store_id)
    if kind == "amqp":
        from outbox.forwarder.sinks.rabbit import Rabbit

        return Rabbit(table, store_id)
    if kind == "kafka":
        from outbox.forwarder.sinks.kafka import Kafka

        return Kafka(table, store_id)
    from outbox.forwarder.sinks.objects import Folder, ObjectSink

    if urlsplit(table.url).scheme == "s3":
        from outbox.forwarder.sinks.s3 import S3Bucket

        return ObjectSink(S3Bucket(table), table.feed)
    return ObjectSink(Folder(Path(unquote(urlsplit(table.url).path)), disk), table.feed)
