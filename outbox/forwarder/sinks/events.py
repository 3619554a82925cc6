"""CloudEvents 1.0 in JSON, around lines as they are."""

from __future__ import annotations

from collections.abc import Sequence

from outbox.forwarder.sink import Message, head_of

__all__ = ["BATCH", "SINGLE", "TYPES", "batch", "event"]

SINGLE = "application/cloudevents+json; charset=utf-8"
BATCH = "application/cloudevents-batch+json; charset=utf-8"

TYPES = {"notifications": "oncelake.notification", "alerts": "oncelake.alert"}


def event(message: Message, store_id: str, feed: str) -> bytes:
    """One event; `data` is the line, byte for byte."""
    head = (
        f'{{"specversion":"1.0","id":"{message.seq}","source":"/oncelake/{store_id}/{feed}","type":"{TYPES[feed]}",'
        f'"time":"{head_of(message.line).processedAt}","datacontenttype":"application/json","data":'
    )
    return head.encode() + message.line + b"}"


def batch(messages: Sequence[Message], store_id: str, feed: str) -> bytes:
    """An array of events."""
    return b"[" + b",".join(event(message, store_id, feed) for message in messages) + b"]"
