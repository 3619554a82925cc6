"""NATS JetStream: each message states its `Nats-Msg-Id` and which message of the stream it follows.

The sequence that it expects makes it exact: of messages on their way none is taken behind a hole, and an attempt that
goes through late finds its place taken. A stream may hold other subjects; what they publish in between costs a look
at the stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Coroutine, Sequence
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

import msgspec
import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import StreamInfo

from outbox.forwarder.settings import Forward
from outbox.forwarder.sink import TIMEOUT_S, Found, Message, Refused, Rejected, Stale, Undelivered, head_of

__all__ = ["JetStream", "matches"]

T = TypeVar("T")

_WRONG_LAST_SEQUENCE = 10_071
_BEHIND = "Oncelake-Behind"
"""On dead letters that were sent again: the seq that was last when they were."""


class _Error(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Ack(msgspec.Struct):
    seq: int = 0
    duplicate: bool = False
    error: _Error | None = None


_ack_of = msgspec.json.Decoder(_Ack).decode


class JetStream:
    """One subject of one stream. Has an event loop of its own, which runs while it is asked something."""

    def __init__(self, table: Forward, store_id: str, *, timeout_s: float = TIMEOUT_S) -> None:
        options = table.options()
        self._stream, self._subject = options["stream"], options["subject"]
        self._server = urlunsplit(urlsplit(table.url)._replace(query="", path=""))
        self._ids = f"{store_id}-{table.feed}"
        self._timeout_s = timeout_s
        self._runner = asyncio.Runner()
        self._client: Client | None = None
        self._last = 0  # sequence of the stream
        self._top = 0  # seq of the feed

    def open(self) -> Found | None:
        """The last message of the subject; 0 in a new stream."""
        return self._run(self._open())

    def send(self, messages: Sequence[Message]) -> None:
        """All at once, then their acknowledgements."""
        self._run(self._send([(f"{self._ids}-{seq}", line, {}) for seq, line in messages]))
        self._top = messages[-1].seq

    def resend(self, messages: Sequence[Message]) -> None:
        """Under ids that the stream does not know, since it may know those of the first attempt."""
        more = {_BEHIND: str(self._top)}
        self._run(self._send([(f"{self._ids}-{seq}-behind-{self._last}", line, more) for seq, line in messages]))

    def close(self) -> None:
        """The connection and the loop."""
        if self._client is not None:
            client, self._client = self._client, None
            with contextlib.suppress(Undelivered):  # it is gone already
                self._run(client.close())
        self._runner.close()

    def _run(self, work: Coroutine[object, object, T]) -> T:
        async def limited() -> T:
            async with asyncio.timeout(2 * self._timeout_s):
                return await work

        try:
            return self._runner.run(limited())
        except (nats.errors.Error, OSError, TimeoutError, ssl.SSLError, EOFError) as error:
            raise Undelivered(f"NATS: {str(error) or type(error).__name__}") from error

    async def _connect(self) -> Client:
        """Two tries at once, since the client counts none as no limit; it says why only to a callback."""
        client, why = Client(), [""]

        async def tell(error: Exception) -> None:
            why[0] = str(error)

        try:
            await client.connect(
                self._server,
                connect_timeout=int(self._timeout_s) or 1,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                error_cb=tell,
            )
        except BaseException as error:
            await client.close()  # the client leaves a half-made connection open
            if isinstance(error, nats.errors.NoServersError) and why[0]:
                raise OSError(why[0]) from error
            raise
        return client

    async def _open(self) -> Found | None:
        self._client = await self._connect()
        manager = self._client.jsm()
        try:
            info = await manager.stream_info(self._stream)
        except nats.js.errors.NotFoundError:
            info = await manager.add_stream(name=self._stream, subjects=[self._subject])
        await self._add_subject(info)
        self._last = info.state.last_seq
        try:
            last = await manager.get_last_msg(self._stream, self._subject)
        except nats.js.errors.NotFoundError:
            return Found(0) if self._last == 0 else None
        self._last = max(self._last, last.seq or 0)
        line = last.data or b""
        try:
            found = Found(int((last.headers or {}).get(_BEHIND, 0)) or head_of(line).seq, line)
        except msgspec.MsgspecError:
            raise Refused(f"the last message of {self._subject!r} is no line of a feed: use another subject") from None
        self._top = found.seq
        return found

    async def _add_subject(self, info: StreamInfo) -> None:
        subjects = info.config.subjects or []
        if not any(matches(pattern, self._subject) for pattern in subjects):
            assert self._client is not None
            config = info.config.evolve(subjects=[*subjects, self._subject])
            await self._client.jsm().update_stream(config)

    async def _send(self, batch: list[tuple[str, bytes, dict[str, str]]]) -> None:
        client = self._client
        if client is None or client.is_closed:
            raise nats.errors.ConnectionClosedError
        inbox = client.new_inbox()
        acks: dict[int, _Ack] = {}
        done = asyncio.get_running_loop().create_future()

        async def take(message: Msg) -> None:
            acks[int(message.subject.rpartition(".")[2])] = _ack_of(message.data or b'{"error":{"code":503}}')
            if len(acks) == len(batch) and not done.done():
                done.set_result(None)

        subscription = await client.subscribe(f"{inbox}.*", cb=take, pending_msgs_limit=0, pending_bytes_limit=0)
        try:
            for number, (identity, line, more) in enumerate(batch):
                headers = {"Nats-Msg-Id": identity, "Nats-Expected-Last-Sequence": str(self._last + number), **more}
                await client.publish(self._subject, line, reply=f"{inbox}.{number}", headers=headers)
            async with asyncio.timeout(self._timeout_s):
                while not done.done() and not client.is_closed:
                    await asyncio.wait([done], timeout=0.2)
            if client.is_closed:
                raise nats.errors.ConnectionClosedError
        finally:
            if not client.is_closed:
                await subscription.unsubscribe()
        self._judge([acks[number] for number in range(len(batch))])
        self._last += len(batch)

    def _judge(self, acks: list[_Ack]) -> None:
        for number, ack in enumerate(acks):
            if ack.error is not None:
                if ack.error.err_code == _WRONG_LAST_SEQUENCE:
                    raise Stale(f"the stream {self._stream!r} does not end at sequence {self._last + number}")
                told = f"NATS: {ack.error.description or 'no stream takes the subject'}"
                raise Rejected(told) if ack.error.code == 400 else Undelivered(told)
            if ack.duplicate or ack.seq != self._last + number + 1:
                raise Stale(f"the stream {self._stream!r} knows a message by its id, at sequence {ack.seq}")


def matches(pattern: str, subject: str) -> bool:
    """Whether a subject falls under a pattern with `*` and `>`."""
    wanted, have = pattern.split("."), subject.split(".")
    for number, part in enumerate(wanted):
        if part == ">":
            return len(have) > number
        if number >= len(have) or part not in ("*", have[number]):
            return False
    return len(wanted) == len(have)
