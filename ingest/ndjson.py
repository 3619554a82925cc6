"""NDJSON: a stream of lines, cut into chunks of bounded bytes and rows.

A line that cannot be parsed is one rejected record; blank lines (spaces, tabs, CR) count as lines only.
A byte order mark at the very start is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from ingest.batch import Chunk, Located, Reject
from ingest.lines import Ints, Lines, chunk_of, decode_lines
from ingest.record import MAX_RECORD_BYTES, Rules, malformed
from ingest.validate import columns_of
from store import kernels
from store.journal import Position

__all__ = ["BOM", "Readable", "ndjson_chunks", "too_long_chunk"]

BOM = b"\xef\xbb\xbf"
_KEPT_OF_A_LONG_LINE = 64 << 10


class Readable(Protocol):
    """A stream of decompressed bytes; `read` gives `size` bytes, and fewer only at the end."""

    def read(self, size: int, /) -> bytes:
        """The next bytes."""


def ndjson_chunks(
    stream: Readable, rules: Rules, start: Position, *, chunk_bytes: int, chunk_rows: int, exact: bool = False
) -> Iterator[Chunk]:
    """The chunks of a stream that stands at `start`."""
    at = start
    pending = b""
    while True:
        block = stream.read(chunk_bytes)
        final = len(block) < chunk_bytes
        if at.offset == 0 and not pending:
            block += stream.read(len(BOM)) if len(block) < len(BOM) else b""
            if block.startswith(BOM):
                block = block[len(BOM) :]
                at = Position(len(BOM), at.index, at.line)
        if final:
            text, pending = pending + block, b""
        elif cut := block.rfind(b"\n") + 1:
            text, pending = b"".join((pending, memoryview(block)[:cut])), block[cut:]
        else:
            pending += block
            cut = pending.rfind(b"\n") + 1
            text, pending = pending[:cut], pending[cut:]
        if text:
            for chunk in _text_chunks(text, at, rules, chunk_rows, exact):
                at = chunk.end
                if chunk.received:
                    yield chunk
        if final:
            return
        if len(pending) > MAX_RECORD_BYTES:
            kept, size = pending[:_KEPT_OF_A_LONG_LINE], len(pending)
            while (tail := stream.read(chunk_bytes)) and b"\n" not in tail:
                size += len(tail)
            line, newline, pending = tail.partition(b"\n")
            chunk = too_long_chunk(at, kept, size + len(line), size + len(line) + len(newline))
            at = chunk.end
            yield chunk


def too_long_chunk(at: Position, kept: bytes, size: int, step: int) -> Chunk:
    """One rejected record that is too long to be read; its dead letter keeps the beginning."""
    found = malformed(f"A record of {size} bytes; at most {MAX_RECORD_BYTES} can be.")
    reject = Reject(at.index, at.line, None, found.errors, kept)

    def locate(row: int) -> Located:
        raise IndexError(row)

    end = Position(at.offset + step, at.index + 1, at.line + 1)
    return Chunk(columns_of([]), np.empty(0, np.int64), [reject], 1, locate, end)


def _text_chunks(text: bytes, at: Position, rules: Rules, chunk_rows: int, exact: bool) -> Iterator[Chunk]:
    """Whole lines as chunks; the last of them ends where the text ends."""
    breaks = kernels.line_ends(text)
    if not text.endswith(b"\n"):
        breaks = np.append(breaks, len(text))
    starts = np.concatenate(([0], breaks[:-1] + 1))
    for first in range(0, len(breaks), chunk_rows):
        last = min(first + chunk_rows, len(breaks))
        lines = _rows(text, starts[first:last], breaks[first:last], at.line)
        end_byte = min(int(breaks[last - 1]) + 1, len(text)) - int(starts[first])
        end = Position(at.offset + end_byte, at.index + len(lines), at.line + last - first)
        yield chunk_of(decode_lines(lines, rules, exact=exact), lines, at.index, end)
        at = end


def _rows(text: bytes, starts: Ints, ends: Ints, first_line: int) -> Lines:
    """The lines that are not blank, without their CR."""
    data = np.frombuffer(text, np.uint8)
    numbers = np.arange(first_line, first_line + len(starts))
    if len(data):
        crs = (ends > starts) & (data[ends - 1] == ord("\r"))
        ends = ends - crs
    full = ends > starts
    if len(data):
        odd = np.flatnonzero(full & (data[np.minimum(starts, len(data) - 1)] <= ord(" ")))
        full[[row for row in odd.tolist() if not text[starts[row] : ends[row]].strip(b" \t\r")]] = False
    if not full.all():
        starts, ends, numbers = starts[full], ends[full], numbers[full]
    return Lines(text, starts, ends, numbers)
