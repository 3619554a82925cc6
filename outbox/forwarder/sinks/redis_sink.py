"""Redis: a stream whose entry ids are `<seq>-0`, which Redis takes once, and PUBLISH for who subscribes to a channel.

A batch is one transaction, so that it is there as a whole or not at all: a stream takes ids in rising order only, and
a hole could never be filled.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from outbox.forwarder.settings import Forward
from outbox.forwarder.sink import TIMEOUT_S, Found, Message, Refused, Stale, Undelivered

__all__ = ["RedisSink"]


class RedisSink:
    """A stream, a channel, or both."""

    def __init__(self, table: Forward, *, timeout_s: float = TIMEOUT_S) -> None:
        options = table.options()
        self._stream = options.get("stream")
        self._channel = options.get("channel")
        self._maxlen = int(options["maxlen"]) if "maxlen" in options else None
        url = urlunsplit(urlsplit(table.url)._replace(query=""))
        try:
            self._redis = redis.Redis.from_url(
                url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0)
            )
        except ValueError as error:
            raise Refused(f"{table.shown_url}: {error}") from None

    def open(self) -> Found | None:
        """Where the stream ends; a channel cannot tell."""
        try:
            if self._stream is None:
                self._redis.ping()
                return None
            if not self._redis.exists(self._stream):
                return Found(0)
            if self._redis.type(self._stream) != b"stream":
                raise Refused(f"the key {self._stream!r} is no stream: use another one")
            last = self._text(self._redis.xinfo_stream(self._stream)["last-generated-id"])
            newest = self._redis.xrevrange(self._stream, count=1)
        except (redis.RedisError, OSError) as error:
            raise Undelivered(f"Redis: {error}") from error
        seq = int(last.partition("-")[0])
        for entry, fields in newest or []:
            if self._text(entry) == last and fields and isinstance(line := fields.get(b"data"), bytes):
                return Found(seq, line)
        return Found(seq)

    def send(self, messages: Sequence[Message]) -> None:
        """One transaction."""
        pipe = self._redis.pipeline(transaction=True)
        for seq, line in messages:
            if self._stream is not None:
                pipe.xadd(self._stream, {"data": line}, id=f"{seq}-0", maxlen=self._maxlen)
            if self._channel is not None:
                pipe.publish(self._channel, line)
        self._execute(pipe)

    def resend(self, messages: Sequence[Message]) -> None:
        """Behind the last entry, as `<its seq>-1` and so on: the stream takes no smaller ids. `data` tells the seq."""
        pipe = self._redis.pipeline(transaction=True)
        if self._stream is not None:
            found = self.open()
            last = found.seq if found else 0
            for _, line in messages:
                pipe.xadd(self._stream, {"data": line}, id=f"{last}-*")
        if self._channel is not None:
            for _, line in messages:
                pipe.publish(self._channel, line)
        self._execute(pipe)

    def _execute(self, pipe: redis.client.Pipeline) -> None:
        try:
            pipe.execute()
        except redis.ResponseError as error:
            if "equal or smaller" in str(error):
                raise Stale(f"the stream {self._stream!r} holds more than was acknowledged") from error
            raise Undelivered(f"Redis: {error}") from error
        except (redis.RedisError, OSError) as error:
            raise Undelivered(f"Redis: {error}") from error

    def close(self) -> None:
        """The connection."""
        self._redis.close()

    @staticmethod
    def _text(value: bytes | str | None) -> str:
        return value.decode() if isinstance(value, bytes) else value or ""
