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
    from outbox.forwarder.sinks.objects import Folder, ObjectSink

    return ObjectSink(Folder(Path(unquote(urlsplit(table.url).path)), disk), table.feed)
