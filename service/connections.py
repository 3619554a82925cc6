"""HTTP connections that cannot be held for nothing: heads, bodies and answers have their time, and there are so many.

uvicorn waits for ever for the rest of a request's head and for a client that does not read its answer, and keeps every
byte of a head. How large a body may be is the application's to say, and to answer before all of it has come.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.problems import MEDIA_TYPE, problem_body

__all__ = ["ConnectionLimits", "protocol"]


@dataclass(frozen=True)
class ConnectionLimits:
    """`header_timeout_s` is for the whole head of a request, and for the rest of a body that was answered already;
    `body_timeout_s` for the whole body; `write_timeout_s` for 64 KiB of an answer to be taken.
    """

    connections: int = 1_000
    header_timeout_s: float = 10.0
    header_bytes: int = 64 << 10
    body_timeout_s: float = 30.0
    write_timeout_s: float = 30.0


def protocol(limits: ConnectionLimits) -> type[HttpToolsProtocol]:
    """The protocol class for uvicorn."""
    return type("LimitedProtocol", (_Protocol,), {"limits": limits})


class _Protocol(HttpToolsProtocol):
    limits: ClassVar[ConnectionLimits]
    _head_timer: asyncio.TimerHandle | None = None
    _body_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _data_bytes = 0
    _in_body = False
    _refusal: tuple[int, str, str] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            most = self.limits.connections
            self._refuse(503, "too_many_connections", f"{most} connections are open (api.max_connections): come back")
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._body_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._body_timer = self._write_timer = None
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return  # refused, and told so
        self._data_bytes = len(data)
        if not self._in_body:
            self._head_bytes += len(data)
            self._expect_head()  # empty lines before a request begin none
        super().data_received(data)
        if self._in_body and self._body_timer is None and not self.transport.is_closing():
            self._body_timer = self.loop.call_later(self.limits.body_timeout_s, self._body_is_late)
        if self._head_bytes > self.limits.header_bytes and not self.transport.is_closing():
            self._refuse(*self._too_long())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        at_most, self._head_bytes = self._head_bytes + self._data_bytes, 0
        self._in_body = True
        if at_most > self.limits.header_bytes and self._is_too_long():
            self._refusal = self._too_long()
            raise ValueError("the head is too long")  # becomes the parser's error, and that a refusal
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_body = False
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body and not self.transport.is_closing():
            # The client is to read the answer (401, 413) before its body is cut short, but not to send for ever.
            if self._body_timer is not None:
                self._body_timer.cancel()
            self._body_timer = self.loop.call_later(self.limits.header_timeout_s, self.transport.close)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.limits.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn when the parser gives up."""
        self._refuse(*(self._refusal or (400, "bad_request", "the request is not HTTP/1.1")))

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.header_timeout_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        if self._is_answering():
            self._expect_head()  # it waits behind the answer to the request before
        elif self._head_bytes:
            limit = f"{self.limits.header_timeout_s:g} s (api.header_timeout_s)"
            self._refuse(408, "header_timeout", f"the head of the request did not arrive within {limit}")
        else:
            self.transport.close()

    def _body_is_late(self) -> None:
        limit = f"{self.limits.body_timeout_s:g} s (api.body_timeout_s)"
        self._refuse(408, "body_timeout", f"the body did not arrive within {limit}")

    def _is_answering(self) -> bool:
        return bool(self.pipeline) or (self.cycle is not None and not self.cycle.response_complete)

    def _is_too_long(self) -> bool:
        head = sum(len(name) + len(value) + 4 for name, value in self.headers)
        return len(self.url) + head > self.limits.header_bytes

    def _too_long(self) -> tuple[int, str, str]:
        most = self.limits.header_bytes
        return 431, "headers_too_large", f"the head of a request may have {most} bytes (api.max_header_bytes)"

    def _refuse(self, status: int, code: str, detail: str) -> None:
        """Answer in place of the application, and close. What is answered already is cut off."""
        if self._is_answering():
            if self.pipeline or not self._in_body or self.cycle.response_started:
                self.transport.abort()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        body = problem_body(status, code, detail)
        title = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}
        head = (
            f"HTTP/1.1 {status} {title.get(status, 'Service Unavailable')}\r\ncontent-type: {MEDIA_TYPE}\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n"
        )
        if status == 503:
            head += "retry-after: 1\r\n"
        self.transport.write(head.encode("ascii") + b"\r\n" + body)
        self.transport.close()
