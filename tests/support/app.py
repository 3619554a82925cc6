"""The HTTP face on a free port, over an intake that says what a test wants and a reader of plain records."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import uvicorn

from api.app import create_app
from api.ports import ApiSettings
from outbox.feed import Feed, Source
from outbox.news import News
from outbox.remake import Origin
from service.connections import ConnectionLimits, protocol
from store.engine import Engine
from store.letters import Letters
from store.outcomes import Answer, Reply
from store.snapshot import Snapshot

__all__ = ["FakeIntake", "FakeReader", "Served", "served"]

NOTHING = Answer(0, 0, 0, 0, 0, None, None, [], problems_truncated=False)

_LIMITS = ConnectionLimits()


@dataclass
class FakeIntake:
    """Gives `reply`, or raises `failure` at once, or fails the future with `late_failure`; keeps what it was given."""

    reply: Reply = field(default_factory=lambda: Reply(NOTHING, single=False))
    failure: BaseException | None = None
    late_failure: BaseException | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)

    def submit(
        self,
        body: bytes,
        media_type: str,
        encoding: str | None,
        *,
        atomic: bool,
        dry_run: bool,
        request_id: str,
        sources: frozenset[str] | None = None,
        letter: str | None = None,
    ) -> Future[Reply]:
        self.calls.append(
            {
                "body": body,
                "media_type": media_type,
                "encoding": encoding,
                "atomic": atomic,
                "dry_run": dry_run,
                "request_id": request_id,
            }
        )
        if self.failure is not None:
            raise self.failure
        future: Future[Reply] = Future()
        if self.late_failure is not None:
            threading.Timer(0.01, future.set_exception, (self.late_failure,)).start()
        else:
            threading.Timer(0.001, future.set_result, (self.reply,)).start()
        return future


@dataclass
class FakeReader:
    """Reads one snapshot; the record found by an id is the first of its rows with it."""

    engine: Engine
    current: Snapshot
    components: dict[str, dict[str, object]] = field(default_factory=lambda: {"store": {"status": "ok", "seq": 1}})
    on_snapshot: Callable[[], None] = lambda: None
    open_snapshots: int = 0
    news: News = field(default_factory=News)

    def feed(self, name: str) -> Feed:
        """A feed of a lake in which nothing was committed."""

        def origin() -> contextlib.AbstractContextManager[Origin]:
            return contextlib.nullcontext(Origin(self.current, ()))

        return Feed(name, Source(Path(), lambda: 0, lambda: 1, origin, Path()))

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        self.on_snapshot()
        self.open_snapshots += 1
        try:
            yield self.current
        finally:
            self.open_snapshots -= 1

    def find(self, record_id: str) -> pa.Table | None:
        for table in self.current.hot:
            ids = table.column("recordId").to_pylist()
            if record_id in ids:
                return table.slice(ids.index(record_id), 1)
        return None

    @property
    def letters(self) -> Letters:
        return Letters(Path("nowhere"), list)

    def metrics(self) -> tuple[bytes, str]:
        return b"", "text/plain"

    def health(self) -> dict[str, dict[str, object]]:
        return self.components


@dataclass
class Served:
    """What a test needs of the running service."""

    port: int
    client: httpx.Client
    intake: FakeIntake
    reader: FakeReader

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.client.get(path, **options)

    def post(self, body: bytes = b"{}", media_type: str = "application/json", path: str = "/records") -> httpx.Response:
        return self.client.post(path, content=body, headers={"content-type": media_type})

    def raw(self, data: bytes) -> bytes:
        """Send bytes, and give all that comes back until the service closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), 10) as connection:
            connection.sendall(data)
            pieces = []
            while piece := connection.recv(1 << 16):
                pieces.append(piece)
            return b"".join(pieces)


@contextlib.contextmanager
def served(root: Path, snapshot: Snapshot, limits: ConnectionLimits = _LIMITS, **settings: Any) -> Iterator[Served]:
    """Uvicorn with this app, as the service runs it."""
    (root / "tmp").mkdir(parents=True, exist_ok=True)
    engine = Engine(root, root / "tmp", memory="64MB")
    intake, reader = FakeIntake(), FakeReader(engine, snapshot)
    app = create_app(intake, reader, ApiSettings(**settings))
    server = uvicorn.Server(
        uvicorn.Config(app, http=protocol(limits), loop="uvloop", lifespan="off", log_config=None, access_log=False)
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
                yield Served(port, client, intake, reader)
        finally:
            server.should_exit = True
            thread.join(20)
            engine.close()
