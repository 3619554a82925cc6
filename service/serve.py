"""`oncelake serve`: the lake and its HTTP face, until SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Iterator

import uvicorn

from api.app import create_app
from api.ports import ApiSettings
from api.tokens import Tokens
from outbox.news import News
from service.access_log import AccessLog
from service.config import Config
from service.connections import ConnectionLimits, protocol
from service.logs import configure_logging
from service.runtime import Lake, Reader
from service.shutdown import Draining, end_within
from store import kernels
from store.engine import Engine

__all__ = ["modules_kept", "serve"]

logger = logging.getLogger("oncelake.service")

_WATCH_S = 0.2
_OPEN_FILES = 65_536


class _Server(uvicorn.Server):
    """uvicorn, with signals of our own: the first one ends it in order, a second one at once."""

    def __init__(self, config: uvicorn.Config, draining: Draining, address_line: str, news: News) -> None:
        super().__init__(config)
        self._draining = draining
        self._news = news
        self._address_line = address_line

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self._address_line, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._news.end()  # readers of feeds would wait for lines that do not come
        await self._draining.drain()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(config: Config) -> int:
    """Serve until a signal; 0 then, 1 where the store failed."""
    configure_logging(config.log.level, config.log.format)
    sys.setswitchinterval(0.0005)  # the committer shares the interpreter with the event loop and the decoders
    _raise_open_files()
    listener = _listen(config.api.host, config.api.port)
    if not kernels.available():
        logger.warning("store/_kernels is not there: bulk is slower without it (docs/operations.md)")
    lake = Lake(config)
    temp = lake.store.root / "internal" / "tmp"
    lake.store.disk.make_directory(temp)
    store = config.store
    engine = Engine(
        lake.store.root,
        temp,
        memory=store.query_memory,
        threads=store.query_threads,
        time_s=store.query_timeout_s,
        observe=lake.metrics.asked,
    )
    app = create_app(
        lake.intake,
        Reader(lake, engine),
        _api_settings(config),
        Tokens(config.tokens),
    )
    draining = Draining(app, config.api.shutdown_s)
    server = _Server(
        uvicorn.Config(
            draining if config.log.access == "none" else AccessLog(draining, config.log.access),
            loop="uvloop",
            http=protocol(_connection_limits(config)),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,  # connections that are left once requests have had their time
        ),
        draining,
        f"oncelake serves {lake.store.root} at http://{_address(listener)}",
        lake.news,
    )
    _say_who_may(config)
    lake.start()
    _stop_on_signals(server, lake, config.api.shutdown_s)
    watch = (server, lake, config.api.shutdown_s)
    threading.Thread(target=_stop_on_failure, args=watch, daemon=True).start()
    try:
        with modules_kept(), asyncio.Runner(loop_factory=_loop) as runner:
            runner.run(server.serve(sockets=[listener]))
    finally:
        lake.stop()
        engine.close()
    return 1 if lake.store.failure else 0


def _api_settings(config: Config) -> ApiSettings:
    api = config.api
    return ApiSettings(
        max_body_bytes=api.max_body_bytes,
        concurrent_queries=api.concurrent_queries,
        open_answers=api.open_answers,
        waiting_queries=api.waiting_queries,
        max_answer_rows=api.max_answer_rows,
    )


def _connection_limits(config: Config) -> ConnectionLimits:
    api = config.api
    return ConnectionLimits(
        connections=api.max_connections,
        header_timeout_s=api.header_timeout_s,
        header_bytes=api.max_header_bytes,
        body_timeout_s=api.body_timeout_s,
        write_timeout_s=api.write_timeout_s,
    )


def _raise_open_files() -> None:
    """As many files as the system lets us have: connections, and the files of the store beside them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextlib.contextmanager
def modules_kept() -> Iterator[None]:
    """What is here now is not looked through for cycles: with all modules that held the interpreter for 65 ms."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


def _listen(host: str, port: int) -> socket.socket:
    """The socket, bound before anything is opened: a taken port is found at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    listener.listen(2_048)
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _say_who_may(config: Config) -> None:
    if config.tokens:
        logger.info("requests need one of %d tokens", len(config.tokens))
    elif config.api.allow_anonymous:
        logger.warning(
            "no tokens are configured, and api.allow_anonymous is set: anyone who reaches it may do anything"
        )
    else:
        logger.info("no tokens are configured: only this machine is served (`oncelake token` makes one)")


def _stop_on_signals(server: uvicorn.Server, lake: Lake, shutdown_s: float) -> None:
    def stop(number: int, frame: object) -> None:
        if server.should_exit:  # as safe as a kill
            os._exit(1 if lake.store.failure else 0)
        server.should_exit = True
        end_within(shutdown_s, lambda: 1 if lake.store.failure else 0)

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, stop)


def _stop_on_failure(server: uvicorn.Server, lake: Lake, shutdown_s: float) -> None:
    """A store that failed is started again by whoever runs the service: its state is known only then."""
    while lake.store.failure is None:
        threading.Event().wait(_WATCH_S)
    server.should_exit = True
    end_within(shutdown_s, lambda: 1)
