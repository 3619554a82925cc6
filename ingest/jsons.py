"""A JSON document: one object, or an array of them, read in bounded memory.

An element that is JSON but no valid record is a rejected record; broken JSON ends the batch with `UndecodableError`,
after the chunks before the break (who takes a body whole collects all chunks first).

Elements are found by trying: a block is cut behind some `}` that stands before `,{`, and msgspec reads `[` block `]`.
If that is an array, the cut stood between elements, as within a string or a nested value something would be left open.
Where no such cut works, Python's scanner goes element by element.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import msgspec
import numpy as np

from ingest.batch import Chunk
from ingest.lines import Lines, chunk_of, decode_lines
from ingest.ndjson import BOM, Readable
from ingest.record import MAX_RECORD_BYTES, Rules, exact_json
from store.errors import UndecodableError
from store.journal import Position

__all__ = ["json_chunks"]

_SPACE = re.compile(rb"[ \t\r\n]*+")
_BETWEEN = re.compile(rb"\}[ \t\r\n]*+,[ \t\r\n]*+\{")
_TAIL_BYTES = 64 << 10
_TRIES = 8
_TOO_LONG = f"an element of more than {MAX_RECORD_BYTES} bytes is no record"
_CUT_BYTES = 16
"""Before the end of what is here an error may come of the end: the beginning of a literal, an escape or a number."""

_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode


class _Source:
    """A stream with what was read ahead of it: `data` begins at byte `offset` of the document."""

    def __init__(self, stream: Readable, chunk_bytes: int) -> None:
        self._stream = stream
        self._chunk_bytes = chunk_bytes
        self.data = b""
        self.offset = 0
        self.ended = False

    def more(self) -> bool:
        """Read another block; False at the end."""
        block = self._stream.read(self._chunk_bytes)
        self.ended = not block
        self.data += block
        return not self.ended

    def drop(self, count: int) -> None:
        """Go on `count` bytes."""
        self.data = self.data[count:]
        self.offset += count

    def peek(self) -> int | None:
        """The next byte that is no white space, which becomes the first of `data`; None at the end."""
        while True:
            self.drop(_space_end(self.data, 0))
            if self.data:
                return self.data[0]
            if not self.more():
                return None

    def skip_to(self, offset: int) -> None:
        """Go on to a byte of the document."""
        while self.offset + len(self.data) < offset:
            self.drop(len(self.data))
            if not self.more():
                raise self.broken(f"it ends before byte {offset}, where it was to be gone on with")
        self.drop(offset - self.offset)

    def broken(self, why: str, at: int = 0, code: str | None = None) -> UndecodableError:
        """The error for the byte `at` of `data`."""
        position = f"byte {self.offset + at}"
        return UndecodableError(f"The document is not JSON: {why} ({position}).", code=code, position=position)


def json_chunks(
    stream: Readable, rules: Rules, start: Position, *, chunk_bytes: int, chunk_rows: int, exact: bool = False
) -> Iterator[Chunk]:
    """The chunks from `start` on of a stream that stands at its beginning."""
    source = _Source(stream, chunk_bytes)
    while len(source.data) < len(BOM) and source.more():
        pass
    if source.data.startswith(BOM):
        source.drop(len(BOM))
    first = source.peek()
    if first is None:
        return
    if first == ord("{"):
        yield from _one_object(source, rules, start)
        return
    if first != ord("["):
        raise source.broken("a batch is an object or an array of objects")
    source.drop(1)
    at = Position(source.offset, 0, 0)
    if start.offset > at.offset:
        source.skip_to(start.offset)
        at = Position(start.offset, start.index, 0)
    elif source.peek() == ord("]"):
        _check_end(source)
        return
    while (found := _take(source, first=at.index == 0, chunk_rows=chunk_rows)) is not None:
        elements, ends = found
        chunk = _chunk(elements, source, rules, at, ends, exact)
        at = chunk.end
        yield chunk
    _check_end(source)


def _space_end(data: bytes, at: int) -> int:
    found = _SPACE.match(data, at)
    return found.end() if found else at


def _check_end(source: _Source) -> None:
    """After the closing bracket, which is next, nothing may follow."""
    source.drop(1)
    if source.peek() is not None:
        raise source.broken("something follows its end (several objects are NDJSON)")


def _one_object(source: _Source, rules: Rules, start: Position) -> Iterator[Chunk]:
    if start.index:
        return
    while len(source.data) <= MAX_RECORD_BYTES and source.more():
        pass
    if not source.ended and len(source.data) > MAX_RECORD_BYTES:
        raise source.broken(f"an object of more than {MAX_RECORD_BYTES} bytes is no record")
    data = source.data.rstrip(b" \t\r\n")
    begin = source.offset
    source.offset += len(data)
    text = Lines(data, np.array([0]), np.array([len(data)]))
    decoded = decode_lines(text, rules, exact=True)
    for _, found in decoded.rejected:
        if found.broken:
            source.offset = begin
            raise source.broken(found.errors[0].message, code=found.broken_code)
    yield chunk_of(decoded, text, 0, Position(source.offset, 1, 0))


def _take(source: _Source, *, first: bool, chunk_rows: int) -> tuple[list[bytes], int] | None:
    """Some elements and the bytes that they take up (dropped by the caller); None before the closing bracket."""
    byte = source.peek()
    if byte == ord("]") and not first:
        return None
    if byte is None or (not first and byte != ord(",")):
        raise source.broken("it ends within the array" if byte is None else "a comma or ] is missing")
    skip = 0 if first else 1
    if len(source.data) < MAX_RECORD_BYTES and not source.ended:
        source.more()
    while True:
        found = _take_block(source.data, skip, chunk_rows) or _take_slowly(source, skip, chunk_rows)
        if found is not None:
            return found
        source.more()


def _take_block(data: bytes, skip: int, chunk_rows: int) -> tuple[list[bytes], int] | None:
    tail = max(skip, len(data) - _TAIL_BYTES)
    cuts = [found.start() + 1 for found in _BETWEEN.finditer(data, tail)]
    for cut in cuts[: -_TRIES - 1 : -1]:
        try:
            elements = [bytes(raw) for raw in _elements(b"[" + data[skip:cut] + b"]")]
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            continue
        if len(elements) <= chunk_rows:
            return elements, cut
        # Between elements there is only white space and a comma, so that each is found where it stands.
        end = skip
        for element in elements[:chunk_rows]:
            end = data.index(element, end) + len(element)
        return elements[:chunk_rows], end
    return None


def _take_slowly(source: _Source, skip: int, chunk_rows: int) -> tuple[list[bytes], int] | None:
    """Element by element; None where the first of them is not whole yet."""
    data = source.data
    text = data.decode("latin-1")  # a character is a byte, and the grammar is ASCII
    elements: list[bytes] = []
    end = 0
    at = skip
    while len(elements) < chunk_rows:
        begin = _space_end(data, at)
        why, place = "a value is missing", begin
        try:
            _, stop = exact_json.raw_decode(text, begin)
        except json.JSONDecodeError as error:
            why, place = error.msg, error.pos
            stop = len(data) + 1
        except ValueError as error:
            raise source.broken(str(error), begin) from error
        except RecursionError as error:
            raise source.broken("nested too deeply", begin, "too_deep") from error
        if stop >= len(data):  # it may be longer than what is here
            if source.ended and not elements:
                raise source.broken(why if stop > len(data) else "it ends within the array", place)
            if len(data) > 2 * MAX_RECORD_BYTES and not elements:
                if stop > len(data) and place < len(data) - _CUT_BYTES and not why.startswith("Unterminated"):
                    raise source.broken(why, place)
                raise source.broken(_TOO_LONG, begin)
            break
        if stop - begin > MAX_RECORD_BYTES:
            raise source.broken(_TOO_LONG, begin)
        elements.append(data[begin:stop])
        end = stop
        after = _space_end(data, stop)
        if after >= len(data) or data[after] != ord(","):
            break
        at = after + 1
    return (elements, end) if elements else None


def _chunk(elements: list[bytes], source: _Source, rules: Rules, at: Position, used: int, exact: bool) -> Chunk:
    lengths = np.array([len(element) for element in elements], np.int64)
    starts = np.concatenate(([0], np.cumsum(lengths[:-1] + 1)))
    text = Lines(b"\n".join(elements), starts, starts + lengths)
    decoded = decode_lines(text, rules, exact=exact)
    for row, found in decoded.rejected:
        if found.broken:
            end = 0
            for element in elements[: row + 1]:
                end = source.data.index(element, end) + len(element)
            message = f"element {at.index + row}: {found.errors[0].message}"
            raise source.broken(message, end - len(elements[row]), found.broken_code)
    source.drop(used)
    return chunk_of(decoded, text, at.index, Position(source.offset, at.index + len(elements), 0))
