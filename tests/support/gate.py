"""A way to a broker of Kafka that can be cut and opened again, for a broker that forgets everything when it ends.

A client connects to where the broker says it is, so its port in the answers is replaced by that of the gate. Bytes
under way in either direction are lost with a cut, as they are when a server is killed: nobody knows then what it took.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

__all__ = ["Gate"]

_PIECE_BYTES = 64 << 10


class Gate:
    """In front of a broker on 127.0.0.1. `cut` ends all connections and takes no more until `open`."""

    def __init__(self, host: str, port: int) -> None:
        self._behind = ("127.0.0.1", port)
        self._named = host.encode()
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self.port = 0
        self.open()

    def open(self) -> None:
        """Take connections, always on the same port."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._take, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        """Reset every connection."""
        with self._lock:
            listener, self._listener = self._listener, None
            if listener is not None:
                listener.shutdown(socket.SHUT_RDWR)  # wakes up who waits for a connection
                listener.close()
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    each.shutdown(socket.SHUT_RDWR)
                each.close()
            self._open.clear()

    def _take(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(self._behind)
                with self._lock:
                    self._open += [client, server]
                    if self._listener is not listener:
                        break
                theirs = self._named + struct.pack(">i", self._behind[1])
                ours = self._named + struct.pack(">i", self.port)
                for pair in ((client, server, b"", b""), (server, client, theirs, ours)):
                    threading.Thread(target=_pass_on, args=pair, daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket, old: bytes, new: bytes) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(_PIECE_BYTES):
            target.sendall(piece.replace(old, new) if old else piece)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
