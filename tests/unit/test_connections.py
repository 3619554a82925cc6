"""Connections that are slow, silent, too long, too many or never read: each ends, and says why where it can."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from service.connections import ConnectionLimits, protocol

LIMITS = ConnectionLimits(connections=20, header_timeout_s=0.4, header_bytes=4_096, write_timeout_s=0.4)
HEAD = b"GET / HTTP/1.1\r\nhost: x\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers the path; `/endless` never ends, `/slow` takes a second, `/unread` leaves the body where it is."""
    path = scope["path"]
    if path == "/slow":
        await _sleep(1.0)
    start: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": []}
    await send(start)
    try:
        while path == "/endless":
            await send({"type": "http.response.body", "body": bytes(65_536), "more_body": True})
            if (await _gone(receive)) is True:
                ENDED.set()
                return
    finally:
        if path != "/endless":
            await send({"type": "http.response.body", "body": path.encode()})


ENDED = threading.Event()


async def _sleep(seconds: float) -> None:
    import asyncio

    await asyncio.sleep(seconds)


async def _gone(receive: Any) -> bool:
    import asyncio

    try:
        async with asyncio.timeout(0):
            return bool((await receive())["type"] == "http.disconnect")
    except TimeoutError:
        return False


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    config = uvicorn.Config(
        app, http=protocol(LIMITS), ws="none", loop="uvloop", lifespan="off", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        server.force_exit = True
        thread.join(20)


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 10)


def rest(connection: socket.socket) -> bytes:
    """Everything until the other side closes."""
    pieces = []
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(1 << 16):
            pieces.append(piece)
    return b"".join(pieces)


def problem(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head and b"connection: close" in head
    content = json.loads(body)
    assert head.startswith(b"HTTP/1.1 %d " % content["status"])
    return content["status"], content["code"]


@pytest.mark.parametrize("begin", [b"G", HEAD, b"\r\n\r\n", HEAD + b"x: " + bytes([120]) * 99], ids=len)
def test_a_head_that_never_ends_is_408(port: int, begin: bytes) -> None:
    """However much of it is there."""
    with connected(port) as connection:
        connection.sendall(begin)
        assert problem(rest(connection)) == (408, "header_timeout")


def test_a_head_that_comes_a_byte_at_a_time_is_408(port: int) -> None:
    """The time is for all of it, so that a byte now and then does not help."""
    with connected(port) as connection:
        begin = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for byte in HEAD * 100:
                connection.sendall(bytes([byte]))
                time.sleep(0.02)
        assert time.monotonic() - begin < 5


def test_a_silent_connection_is_closed(port: int) -> None:
    """Without an answer: there was no question."""
    with connected(port) as connection:
        assert rest(connection) == b""


def test_empty_lines_between_requests_do_not_hold_a_connection(port: int) -> None:
    """They end the wait for the next request in uvicorn, and none begins."""
    with connected(port) as connection:
        connection.sendall(HEAD + b"\r\n")
        connection.recv(1 << 16)
        connection.sendall(b"\r\n")
        assert problem(rest(connection)) == (408, "header_timeout")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"x" * 5_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        HEAD + b"x: " + b"y" * 5_000 + b"\r\n\r\n",
        HEAD + b"x: y\r\n" * 2_000 + b"\r\n",
        HEAD + b"x: " + b"y" * 100_000,
        b"GET /" + b"x" * 100_000,
    ],
    ids=["path", "value", "many", "endless value", "endless path"],
)
def test_a_head_that_is_too_long_is_431(port: int, head: bytes) -> None:
    """Whole or not, in one piece or in many."""
    with connected(port) as connection:
        connection.sendall(head)
        assert problem(rest(connection)) == (431, "headers_too_large")
    with connected(port) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for at in range(0, len(head), 1_000):
                connection.sendall(head[at : at + 1_000])
                time.sleep(0.002)
        connection.settimeout(5)
        answer = rest(connection)
        assert not answer or problem(answer) == (431, "headers_too_large")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET\r\n\r\n", b"\0" * 100, b"GET / HTTP/9.9\r\n\r\n",
        HEAD + b"content-length: -1\r\n\r\n", HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\n",
        HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", HEAD + b"a b: c\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n", HEAD + b"x: \0\r\n\r\n",
    ],
    ids=range(10),
)  # fmt: skip
def test_what_is_not_http_is_400(port: int, request_bytes: bytes) -> None:
    """TLS on a plain port, smuggled lengths, NUL in a field."""
    with connected(port) as connection:
        connection.sendall(request_bytes)
        answer = rest(connection)
        # A chunk that breaks comes after the answer to its head has begun.
        assert answer.startswith(b"HTTP/1.1 200") or problem(answer) == (400, "bad_request")


def test_more_connections_than_allowed_are_503(port: int) -> None:
    """And as soon as some are gone, others are served."""
    many = [connected(port) for _ in range(LIMITS.connections)]
    for connection in many:
        connection.sendall(HEAD + b"\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
    with connected(port) as one_more:
        answer = rest(one_more)
        assert problem(answer) == (503, "too_many_connections") and b"retry-after: 1" in answer
    for connection in many:
        connection.close()
    for _ in range(100):
        with connected(port) as connection:
            connection.sendall(HEAD + b"connection: close\r\n\r\n")
            if rest(connection).startswith(b"HTTP/1.1 200"):
                return
        time.sleep(0.02)
    raise AssertionError("nobody was served any more")


def test_a_body_that_goes_on_after_its_answer_is_cut_off(port: int) -> None:
    """The answer is read; what follows is not waited for."""
    with connected(port) as connection:
        connection.sendall(b"POST /unread HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        begin = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while time.monotonic() - begin < 10:
                connection.sendall(b"x")
                time.sleep(0.02)
        assert time.monotonic() - begin < 5


def test_a_client_that_does_not_read_is_cut_off(port: int) -> None:
    """Its answer is given up, and what it held is free."""
    ENDED.clear()
    with connected(port) as connection:
        connection.sendall(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
        assert ENDED.wait(10)


def test_requests_behind_a_slow_answer_wait_for_it(port: int) -> None:
    """Pipelined: the time of a head does not run while the answer before it is made."""
    with connected(port) as connection:
        connection.sendall(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n" + b"GET /b HTTP/1.1\r\nhost")
        time.sleep(0.8)
        connection.sendall(b": x\r\nconnection: close\r\n\r\n")
        answer = rest(connection)
        assert answer.count(b"HTTP/1.1 200") == 2 and b"/slow" in answer and b"/b" in answer
