"""A webhook receiver that keeps what it got and answers as it is told."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Receiver", "Request"]


class Request(NamedTuple):
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def events(self) -> list[dict[str, Any]]:
        found = json.loads(self.body)
        return found if isinstance(found, list) else [found]


class Receiver:
    """`answer` gives status and headers for each request, in the order of arrival. With a certificate it speaks TLS."""

    def __init__(
        self,
        answer: Callable[[Request], tuple[int, dict[str, str]]] = lambda request: (204, {}),
        *,
        port: int = 0,
        certificate: Path | None = None,
    ) -> None:
        self.requests: list[Request] = []
        self.answer = answer
        self._open: set[socket.socket] = set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                receiver._open.add(self.connection)

            def finish(self) -> None:
                receiver._open.discard(self.connection)
                with contextlib.suppress(OSError):
                    super().finish()

            def handle(self) -> None:
                with contextlib.suppress(OSError):  # cut by `kill`
                    super().handle()

            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                body = self.rfile.read(length)
                if len(body) < length:  # its sender was killed
                    self.close_connection = True
                    return
                request = Request(self.path, {key.lower(): value for key, value in self.headers.items()}, body)
                status, headers = receiver.answer(request)
                receiver.requests.append(request)
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        if certificate is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def events(self) -> list[dict[str, Any]]:
        """All events of all requests."""
        return [event for request in self.requests for event in request.events]

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def kill(self) -> None:
        """As when its process is killed: every connection is reset, also one whose request is not answered yet."""
        self.__exit__()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.shutdown(socket.SHUT_RDWR)

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
