"""The bare framework: the same Litestar and uvicorn settings, reads the body and answers 201. Nothing is stored."""

from __future__ import annotations

import asyncio
import socket

import uvicorn
import uvloop
from litestar import Litestar, Request, Response, post

_ANSWER = b'{"recordId":"one-1-1","status":"accepted","seq":1}'


@post("/records")
async def _records(request: Request) -> Response:
    await request.body()
    return Response(_ANSWER, status_code=201, media_type="application/json")


def _serve() -> None:
    app = Litestar([_records], openapi_config=None, logging_config=None)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(2_048)
    config = uvicorn.Config(
        app, loop="uvloop", http="httptools", lifespan="off", log_config=None, access_log=False
    )  # fmt: skip
    print(listener.getsockname()[1], flush=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(uvicorn.Server(config).serve(sockets=[listener]))


if __name__ == "__main__":
    _serve()
