"""RabbitMQ: persistent messages with publisher confirms.

Messages are mandatory: one that no queue takes is an error and is tried again, since a broker drops it otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Coroutine, Sequence
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

import aio_pika
from aio_pika.abc import AbstractConnection, AbstractExchange
from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity, DeliveryError

from outbox.forwarder.settings import Forward
from outbox.forwarder.sink import TIMEOUT_S, Found, Message, Undelivered
from outbox.forwarder.sinks.events import TYPES

__all__ = ["Rabbit"]

T = TypeVar("T")


class Rabbit:
    """An exchange and a routing key. Without an exchange the key names a queue."""

    def __init__(self, table: Forward, store_id: str, *, timeout_s: float = TIMEOUT_S) -> None:
        options = table.options()
        self._exchange_name = options.get("exchange", "")
        self._routing_key = options["routing_key"]
        self._queue_name = options.get("queue") or ("" if self._exchange_name else self._routing_key)
        self._url = urlunsplit(urlsplit(table.url)._replace(query=""))
        self._ids = f"{store_id}-{table.feed}"
        self._type = TYPES[table.feed]
        self._timeout_s = timeout_s
        self._runner = asyncio.Runner()
        self._connection: AbstractConnection | None = None
        self._exchange: AbstractExchange | None = None

    def open(self) -> Found | None:
        """Make what is missing. A queue cannot tell where it stands."""
        self._run(self._open())
        return None

    def send(self, messages: Sequence[Message]) -> None:
        """In order, without waiting in between, then all confirms."""
        self._run(self._send(messages))

    resend = send

    def close(self) -> None:
        """The connection and the loop."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with contextlib.suppress(Undelivered):  # it is gone already
                self._run(connection.close())
        self._runner.close()

    def _run(self, work: Coroutine[object, object, T]) -> T:
        async def limited() -> T:
            async with asyncio.timeout(self._timeout_s):
                return await work

        try:
            return self._runner.run(limited())
        except DeliveryError as error:
            raise Undelivered(
                f"RabbitMQ took a message of {self._routing_key!r} for no queue: bind one to the exchange, or name it "
                "in the URL (queue=…)"
            ) from error
        except (AMQPError, OSError, TimeoutError, ssl.SSLError, asyncio.CancelledError) as error:
            raise Undelivered(f"RabbitMQ: {str(error) or type(error).__name__}") from error

    async def _open(self) -> None:
        connection = self._connection = await aio_pika.connect(self._url, timeout=self._timeout_s)
        if self._exchange_name and not await self._is_there(connection, "exchange", self._exchange_name):
            async with connection.channel() as channel:
                await channel.declare_exchange(self._exchange_name, durable=True)
        if self._queue_name and not await self._is_there(connection, "queue", self._queue_name):
            async with connection.channel() as channel:
                await channel.declare_queue(self._queue_name, durable=True)
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        self._exchange = channel.default_exchange
        if self._exchange_name:
            self._exchange = await channel.get_exchange(self._exchange_name, ensure=False)
            if self._queue_name:
                queue = await channel.get_queue(self._queue_name, ensure=False)
                await queue.bind(self._exchange, self._routing_key)

    async def _is_there(self, connection: AbstractConnection, what: str, name: str) -> bool:
        """Asked on a channel of its own, which ends where the answer is no."""
        channel = await connection.channel()
        try:
            if what == "queue":
                await channel.get_queue(name, ensure=True)
            else:
                await channel.get_exchange(name, ensure=True)
        except ChannelNotFoundEntity:
            return False
        await channel.close()
        return True

    async def _send(self, messages: Sequence[Message]) -> None:
        assert self._exchange is not None
        publishes = [
            self._exchange.publish(
                aio_pika.Message(
                    line,
                    content_type="application/json",
                    delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                    message_id=f"{self._ids}-{seq}",
                    type=self._type,
                    app_id="oncelake",
                ),
                self._routing_key,
                mandatory=True,
            )
            for seq, line in messages
        ]
        await asyncio.gather(*publishes)
