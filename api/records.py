"""`/records`: taking records and answering questions about them."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import msgspec
import pyarrow as pa
from litestar import Request, Response, get, post
from litestar.response import Stream
from litestar.types import Receive

from api.access import grant_of
from api.answers import json_answer
from api.headers import header
from api.negotiation import wanted
from api.parameters import Parameters, filters_of
from api.ports import ApiSettings, Intake, Reader
from api.problems import ProblemError, problem
from api.questions import Answer, Question, continued
from api.replies import Replies
from api.request_ids import request_id
from api.rows import ARROW, CSV, NDJSON, PARQUET, Form, flat_answer
from api.streams import Streams, in_sections
from store.canonical import render_records, render_times
from store.engine import Stop
from store.errors import TooLargeError
from store.outcomes import Reply
from store.promise import Promise
from store.snapshot import Snapshot

__all__ = ["Records"]

Req = Request[Any, Any, Any]

_AGGREGATION = {
    "startTime", "endTime", "type", "destinationId", "sourceId", "reference", "unit", "include", "asOf",
    "limit", "cursor",
}  # fmt: skip
_JSON = "application/json"
_FORMS: dict[str, Form | None] = {
    _JSON: None,
    "application/x-ndjson": NDJSON,
    "application/ndjson": NDJSON,
    "application/jsonl": NDJSON,
    "text/csv": CSV,
    "application/vnd.apache.arrow.stream": ARROW,
    "application/vnd.apache.parquet": PARQUET,
}
_LOOKUPS = 2
"""Threads for single records, which need not wait for those that aggregate."""

_MAX_LIMIT = 1_000_000


class Taken(NamedTuple):
    """The answer to a body that is no problem. The framework's own kind takes a tenth of a request to make."""

    content: bytes
    status_code: int
    media_type: str = _JSON
    headers: Mapping[str, str] = MappingProxyType({})


class Records:
    """The handlers, with what they need."""

    def __init__(self, intake: Intake, reader: Reader, settings: ApiSettings) -> None:
        self._intake = intake
        self._reader = reader
        self._settings = settings
        self._streams = Streams(settings.concurrent_queries, settings.waiting_queries, settings.open_answers)
        self._replies = Replies()
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="lookup")

    def handlers(self) -> list[Any]:
        """The route handlers."""

        @post("/records", status_code=HTTPStatus.OK)
        async def post_records(request: Request[Any, Any, Any]) -> Response[bytes]:
            return _response(await self.post(request.scope, request.receive))

        @get("/records")
        async def get_record_by_query(request: Request[Any, Any, Any]) -> Response[bytes]:
            if _is_of_an_id(request, b"/records"):
                return await self.find_in_path(request)
            record_id = Parameters(request.scope["query_string"], ("recordId",)).one("recordId")
            if record_id is None:
                raise ProblemError(400, "invalid_parameter", "recordId is missing", parameter="recordId")
            return await self.find(record_id)

        @get("/records/aggregations")
        async def get_aggregations(request: Request[Any, Any, Any]) -> Response[Any]:
            if _is_of_an_id(request, b"/records/aggregations"):
                return await self.find_in_path(request)
            return await self.aggregate(request)

        @get("/records/{record_id:path}")
        async def get_record(request: Request[Any, Any, Any]) -> Response[bytes]:
            return await self.find_in_path(request)

        return [post_records, get_record_by_query, get_aggregations, get_record]

    async def post(self, scope: Any, receive: Receive) -> Taken | Response[bytes]:
        """Take a body, and answer once its commit is durable."""
        query = scope["query_string"]
        if not query:
            return await self._taken(scope, receive)
        parameters = Parameters(query, ("atomic", "dryRun"))
        return await self._taken(scope, receive, atomic=parameters.flag("atomic"), dry_run=parameters.flag("dryRun"))

    async def resubmit(self, request: Req, letter: str) -> Response[bytes]:
        """Take the corrected record of a dead letter."""
        return _response(await self._taken(request.scope, request.receive, letter=letter))

    async def _taken(
        self,
        scope: Any,
        receive: Receive,
        *,
        atomic: bool = False,
        dry_run: bool = False,
        letter: str | None = None,
    ) -> Taken | Response[bytes]:
        media_type = header(scope, b"content-type")
        if media_type is None:
            raise ProblemError(
                415, "unsupported_format", "say what the body is in Content-Type, as in application/json"
            )
        body = await self._body(scope, receive)
        grant = grant_of(scope)
        encoding, name = header(scope, b"content-encoding"), request_id(scope)
        sources = grant.sources if grant else None

        def submit() -> Promise[Reply]:
            return self._intake.submit(
                body,
                media_type,
                encoding,
                atomic=atomic,
                dry_run=dry_run,
                request_id=name,
                sources=sources,
                letter=letter,
            )

        if len(body) <= self._settings.inline_bytes:
            future = submit()
        else:
            future = await asyncio.get_running_loop().run_in_executor(None, submit)
        reply = await self._replies.of(future)
        return _single(reply) if reply.single and not (dry_run or reply.atomic_refused) else _batch(reply)

    async def _body(self, scope: Any, receive: Receive) -> bytes:
        """The whole body, within its limit. The time that it may take is for the connection to say."""
        limit = self._settings.max_body_bytes
        announced = header(scope, b"content-length")
        if announced is not None and announced.isdigit() and int(announced) > limit:
            raise _too_large(limit)
        pieces: list[bytes] = []
        size = 0
        while True:
            message: Any = await receive()
            if message["type"] == "http.disconnect":
                raise ProblemError(400, "disconnected", "the client went away before its body was complete")
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > limit:
                raise _too_large(limit)
            if not message.get("more_body"):
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def find_in_path(self, request: Req) -> Response[bytes]:
        """One record by the id that the path ends with."""
        Parameters(request.scope["query_string"], ())
        return await self.find(_record_id(request.scope["raw_path"]))

    async def find(self, record_id: str) -> Response[bytes]:
        """One record by its id."""
        row = await asyncio.get_running_loop().run_in_executor(self._threads, self._reader.find, record_id)
        if row is None:
            return problem(404, "not_found", f"there is no record {record_id!r}", recordId=record_id)
        return Response(_record(row), media_type="application/json")

    async def aggregate(self, request: Req) -> Response[Any]:
        """Stream an aggregation; what is wrong with the question is answered before the first byte."""
        parameters = Parameters(request.scope["query_string"], _AGGREGATION)
        question = Question(
            continued(filters_of(parameters), parameters.one("cursor")),
            "totals" if parameters.choice("include", ("records", "totals")) == "totals" else "records",
            parameters.whole("limit", 1, _MAX_LIMIT),
            self._settings.max_answer_rows,
        )
        media_type = wanted(",".join(request.headers.getall("accept", [])), tuple(_FORMS))
        form = _FORMS[media_type]
        headers = {"vary": "Accept"}

        def pieces(stop: Stop) -> Generator[bytes, None, None]:
            with self._reader.snapshot() as snapshot, self._answer(snapshot, question, form, stop) as answer:
                headers["oncelake-as-of"] = str(answer.as_of)
                if answer.cursor is not None:
                    link = f"{request.scope['path']}?{parameters.with_cursor(answer.cursor)}"
                    headers["link"] = f'<{link}>; rel="next"'
                if form is not None:
                    headers["content-disposition"] = f'attachment; filename="{question.include}.{form.ending}"'
                yield from in_sections(answer.pieces)

        body = await self._streams.opened(request, pieces)
        return Stream(body, media_type=media_type, headers=headers)

    def _answer(
        self, snapshot: Snapshot, question: Question, form: Form | None, stop: Stop
    ) -> AbstractContextManager[Answer]:
        if form is None:
            return json_answer(self._reader.engine, snapshot, question, stop)
        return flat_answer(self._reader.engine, snapshot, question, form, stop)


def _response(answer: Taken | Response[bytes]) -> Response[bytes]:
    """An answer as the framework has it."""
    if isinstance(answer, Response):
        return answer
    return Response(answer.content, status_code=answer.status_code, media_type=answer.media_type)


def _is_of_an_id(request: Req, path: bytes) -> bool:
    """Whether what the framework takes for `path` names a record: it drops slashes, also where they are escaped."""
    return bytes(request.scope["raw_path"]).partition(b"?")[0] not in (path, path + b"/")


def _record_id(raw_path: bytes) -> str:
    """The id in a path as it was sent: the framework's parameter has lost doubled and trailing slashes."""
    try:
        return unquote_to_bytes(raw_path.partition(b"?")[0].removeprefix(b"/records/")).decode()
    except UnicodeDecodeError:
        raise ProblemError(400, "bad_request", "the path is no UTF-8") from None


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"a body may have {limit} bytes (api.max_body_bytes): send smaller batches, or drop a file")


def _record(row: pa.Table) -> bytes:
    seq = row.column("seq")[0].as_py()
    processed_at = render_times(row.column("processedAt"))[0].as_py()
    record = render_records(row)[0].as_py()
    return f'{{"seq":{seq},"processedAt":"{processed_at}",{record[1:]}'.encode()


def _single(reply: Reply) -> Taken | Response[bytes]:
    """The answer to one object."""
    answer = reply.answer
    if answer.accepted or answer.duplicate:
        status, seq = ("accepted", answer.first_seq) if answer.accepted else ("duplicate", reply.duplicate_seq)
        content = msgspec.json.encode({"recordId": reply.record_id, "status": status, "seq": seq})
        return Taken(content, 201 if answer.accepted else 200)
    found = answer.problems[0]
    if answer.conflict:
        detail = f"the record is stored already, as seq {found.seq}, with other values; it was not changed"
        return problem(409, "conflict", detail, recordId=reply.record_id, seq=found.seq, fields=found.fields)
    errors = () if isinstance(found.errors, msgspec.UnsetType) else found.errors
    detail = "the record breaks a rule: " + " ".join(error.message for error in errors)
    return problem(422, "invalid_record", detail, recordId=found.record_id, errors=errors)


def _batch(reply: Reply) -> Taken | Response[bytes]:
    if not reply.atomic_refused:
        return Taken(msgspec.json.encode(reply.answer), 200)
    answer = reply.answer
    detail = f"nothing of the batch was stored; conflicts: {answer.conflict}, rejected: {answer.rejected}"
    return problem(422, "atomic_refused", detail, **msgspec.to_builtins(answer))
