"""CSV with a header row, as RFC 4180 has it: quotes only around a whole field, doubled inside, newlines inside allowed.

A record with another number of fields than the header, or with a quote where none may stand, is one rejected record
(`malformed`); after bad quoting, reading goes on at the next line, so that one stray quote does not
swallow what follows. Blank lines do not count. pyarrow's reader is the fast path: it takes `ab"c` and `"ab"c`, so it
only gets text whose quotes all stand at the edges of fields, on one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pcsv

from ingest.batch import Chunk, Record
from ingest.lines import Decoded, Ints, Lines, Solver, chunk_of
from ingest.ndjson import BOM, Readable, too_long_chunk
from ingest.record import MAX_RECORD_BYTES, Rejected, Rules, check_fields, malformed
from ingest.validate import Checked, check_columns, has_control_characters
from store.errors import InvalidSchemaError, UndecodableError
from store.journal import Position
from store.schema import CANONICAL_FIELDS, STRING_FIELDS

__all__ = ["csv_chunks"]

_MAX_COLUMNS = 1_000
# Possessive throughout: the text is hostile, and nothing here needs to be tried twice.
_FIELD = rb'(?:"[^"]*+(?:""[^"]*+)*+"|[^",\n]*+)'
_RECORD = re.compile(_FIELD + rb"(?:," + _FIELD + rb")*+\r?(?:\n|\Z)")
_UNFINISHED = re.compile(rb"(?:" + _FIELD + rb',)*+(?:"[^"]*+(?:""[^"]*+)*+"?\r?|[^",\n]*+)\Z')
_NEXT_FIELD = re.compile(rb'(?:"([^"]*+(?:""[^"]*+)*+)"|([^",\n]*+))(,|\Z)')


def csv_chunks(
    stream: Readable, rules: Rules, start: Position, *, chunk_bytes: int, chunk_rows: int, exact: bool = False
) -> Iterator[Chunk]:
    """The chunks from `start` on of a stream that stands at its beginning (the header is needed again)."""
    header = _header(stream, chunk_bytes)
    if header is None:
        return
    names, at, pending = header
    _check_header(names, rules)
    at, pending, open_end = _skip(stream, at, pending, start, chunk_bytes)
    while pending or open_end:
        block = stream.read(chunk_bytes) if open_end else b""
        open_end = len(block) == chunk_bytes
        pending += block
        starts, ends, used, next_line = _cut(pending, at.line, final=not open_end)
        for chunk in _text_chunks(pending[:used], (starts, ends), names, rules, at, next_line, chunk_rows, exact):
            at = chunk.end
            if chunk.received:
                yield chunk
        pending = pending[used:]
        if len(pending) > MAX_RECORD_BYTES:
            size, kept = len(pending), pending[: 64 << 10]
            while (tail := stream.read(chunk_bytes)) and b"\n" not in tail:
                size += len(tail)
            line, newline, pending = tail.partition(b"\n")
            yield (chunk := too_long_chunk(at, kept, size + len(line), size + len(line) + len(newline)))
            at = chunk.end


def _header(stream: Readable, chunk_bytes: int) -> tuple[list[str], Position, bytes] | None:
    """The column names, where the first record may begin, and what was read beyond; None of an empty stream."""
    text = b""
    open_end = True
    while open_end and len(text) <= MAX_RECORD_BYTES:
        block = stream.read(chunk_bytes)
        open_end = bool(block)
        text += block
        offset, line = (len(BOM) if text.startswith(BOM) else 0), 1
        while blank := re.compile(rb"\r?\n").match(text, offset):
            offset, line = blank.end(), line + 1
        found = _RECORD.match(text, offset)
        if found and (found[0].endswith(b"\n") or not open_end):
            if not found[0].strip(b"\r\n"):
                return None
            try:
                fields = _fields(found[0].removesuffix(b"\n").removesuffix(b"\r"))
            except UnicodeDecodeError as error:
                raise UndecodableError("The header row of the CSV is not UTF-8.", position="line 1") from error
            if fields is None:
                break
            at = Position(found.end(), 0, line + found[0].count(b"\n"))
            return fields, at, text[found.end() :]
        if not found and not _UNFINISHED.match(text, offset):
            break
    raise UndecodableError("The header row of the CSV cannot be read: its quotes do not match.", position="line 1")


def _check_header(names: list[str], rules: Rules) -> None:
    if len(names) > _MAX_COLUMNS:
        raise InvalidSchemaError(f"The CSV header has {len(names)} columns; at most {_MAX_COLUMNS} are read.")
    known = ", ".join(CANONICAL_FIELDS)
    shown = [name[:64].encode("utf-8", "backslashreplace").decode() for name in names]
    for name, label in zip(names, shown, strict=True):
        if names.count(name) > 1:
            raise InvalidSchemaError(f"The CSV header names the column {label!r} twice.", position="line 1")
        if name not in CANONICAL_FIELDS and rules.unknown_fields == "reject":
            raise InvalidSchemaError(
                f"The CSV column {label!r} is not known. The columns are {known}.", position="line 1"
            )
    for name in CANONICAL_FIELDS:
        if name not in names:
            raise InvalidSchemaError(f"The CSV column {name!r} is missing. The columns are {known}.", position="line 1")


def _skip(
    stream: Readable, at: Position, pending: bytes, start: Position, chunk_bytes: int
) -> tuple[Position, bytes, bool]:
    """Go on from the end of the header to `start`."""
    if start.offset <= at.offset:
        return at, pending, True
    missing = start.offset - at.offset
    while len(pending) < missing:
        missing -= len(pending)
        pending = stream.read(chunk_bytes)
        if not pending:
            raise UndecodableError(f"The CSV ends before byte {start.offset}, where it was to be gone on with.")
    return start, pending[missing:], True


def _cut(text: bytes, line: int, *, final: bool) -> tuple[Ints, Ints, int, int]:
    """(starts, ends, bytes used, next line) of the whole records in `text`."""
    used = len(text) if final else text.rfind(b"\n") + 1
    data = np.frombuffer(text, np.uint8)[:used]
    if _quotes_at_edges(data):
        breaks = np.flatnonzero(data == ord("\n"))
        count = len(breaks)
        if used and text[used - 1] != ord("\n"):
            breaks = np.append(breaks, used)
        starts = np.concatenate(([0], breaks[:-1] + 1)) if len(breaks) else breaks
        return starts, breaks, used, line + count
    return _scan(text, line, final=final)


def _quotes_at_edges(data: npt.NDArray[np.uint8]) -> bool:
    """Whether every quote opens or closes a whole field on one line, with none doubled: then lines are records."""
    quotes = np.flatnonzero(data == ord('"'))
    if not len(quotes):
        return True
    if len(quotes) % 2:
        return False
    opening, closing = quotes[::2], quotes[1::2]
    before = data[opening - 1]
    before[opening == 0] = ord("\n")
    after = data[np.minimum(closing + 1, len(data) - 1)]
    last = closing + 1 == len(data)
    if not (((before == ord(",")) | (before == ord("\n"))).all()):
        return False
    returns = (after == ord("\r")) & (data[np.minimum(closing + 2, len(data) - 1)] == ord("\n"))
    if not ((after == ord(",")) | (after == ord("\n")) | returns | last).all():
        return False
    breaks = np.flatnonzero(data == ord("\n"))
    return bool((np.searchsorted(breaks, opening) == np.searchsorted(breaks, closing)).all())


def _scan(text: bytes, line: int, *, final: bool) -> tuple[Ints, Ints, int, int]:
    """The same record by record, for text with quotes inside of fields or newlines inside of quotes."""
    starts: list[int] = []
    ends: list[int] = []
    at, size = 0, len(text)
    while at < size:
        found = _RECORD.match(text, at)
        if found is not None and (final or found.end() < size or text[size - 1] == ord("\n")):
            end = found.end()
        else:
            if not final and size - at <= MAX_RECORD_BYTES and _UNFINISHED.match(text, at):
                break
            end = text.find(b"\n", at) + 1
            if not end:
                if not final:
                    break
                end = size
        starts.append(at)
        ends.append(end - 1 if text[end - 1] == ord("\n") else end)
        at = end
    return np.array(starts, np.int64), np.array(ends, np.int64), at, line + text.count(b"\n", 0, at)


def _text_chunks(
    text: bytes,
    edges: tuple[Ints, Ints],
    names: list[str],
    rules: Rules,
    at: Position,
    next_line: int,
    chunk_rows: int,
    exact: bool,
) -> Iterator[Chunk]:
    starts, ends = edges
    if not len(starts):
        return
    data = np.frombuffer(text, np.uint8)
    breaks = np.flatnonzero(data == ord("\n"))
    numbers = at.line + np.searchsorted(breaks, starts)
    crs = (ends > starts) & (data[ends - 1] == ord("\r"))
    bare = ends - crs
    for first in range(0, len(starts), chunk_rows):
        last = min(first + chunk_rows, len(starts))
        begin = int(starts[first])
        final = last == len(starts)
        stop = len(text) if final else int(starts[last])
        keep = np.flatnonzero(bare[first:last] > starts[first:last]) + first
        rows = Lines(text[begin:stop], starts[keep] - begin, bare[keep] - begin, numbers[keep])
        end = Position(at.offset + stop - begin, at.index + len(rows), next_line if final else int(numbers[last]))
        yield chunk_of(_decode(rows, names, rules, exact), rows, at.index, end)
        at = end


def _decode(text: Lines, names: list[str], rules: Rules, exact: bool) -> Decoded:
    solver = Solver(lambda data: _parse(data, names, rules), lambda lines: _fast(lines, names, rules))
    every = np.arange(len(text))
    if exact or not len(text):
        solver.exact(text, every)
        return solver.done()
    quoted = np.zeros(len(text), np.bool_)
    data = np.frombuffer(text.text, np.uint8)
    if not _quotes_at_edges(data):
        running = np.concatenate(([0], np.cumsum(data == ord('"'), dtype=np.int64)))
        quoted = running[text.ends] > running[text.starts]
    plain, others = np.flatnonzero(~quoted), np.flatnonzero(quoted)
    if len(plain):
        solver.solve(text.pick(plain), plain)
    if len(others):
        solver.exact(text.pick(others), others)
    return solver.done()


def _fast(text: Lines, names: list[str], rules: Rules) -> Checked | None:
    """All rows by pyarrow; rows with another number of fields are left to the exact path."""
    # Line ends are cut off by now, so that a CR is data here (and would be taken for a line end).
    if b"\r" in text.text or not _clean_text(text.text, np.frombuffer(text.text, np.uint8)):
        return None
    wrong: list[int] = []

    def skip(row: pcsv.InvalidRow) -> str:
        wrong.append(row.number - 1)
        return "skip"

    try:
        table = pcsv.read_csv(
            pa.BufferReader(text.text),
            read_options=pcsv.ReadOptions(
                use_threads=False, block_size=len(text.text) + 1, column_names=[str(at) for at in range(len(names))]
            ),
            parse_options=pcsv.ParseOptions(
                quote_char='"' if b'"' in text.text else False, double_quote=False, invalid_row_handler=skip
            ),
            convert_options=pcsv.ConvertOptions(
                check_utf8=False,
                column_types={str(at): pa.string() for at in range(len(names))},
                include_columns=[str(names.index(name)) for name in CANONICAL_FIELDS],
                quoted_strings_can_be_null=False,
            ),
        )
    except pa.ArrowException:
        return None
    if table.num_rows + len(wrong) != len(text) or not table.num_rows:
        return None
    columns = dict(zip(CANONICAL_FIELDS, (column.combine_chunks() for column in table.columns), strict=True))
    strings = {name: columns[name] for name in STRING_FIELDS}
    checked = check_columns(strings, columns["time"], columns["value"], rules, clean=True)
    if not wrong:
        return checked
    sure = np.zeros(len(text), np.bool_)
    sure[np.delete(np.arange(len(text)), wrong)] = checked.sure
    return Checked(checked.records, sure)


def _clean_text(text: bytes, data: npt.NDArray[np.uint8]) -> bool:
    """Whether bytes are UTF-8 without control characters, but for line ends."""
    ends = text.count(b"\n")
    if b"\r" in text:
        crs = text.count(b"\r\n")
        if text.count(b"\r") != crs:
            return False
        ends += crs
    if not text.isascii():
        try:
            text.decode("utf-8")
        except UnicodeDecodeError:
            return False
    return not has_control_characters(data, allowed=ends)


def _fields(record: bytes) -> list[str] | None:
    """The fields of a record; None where its quotes are not those of RFC 4180. Raises UnicodeDecodeError."""
    fields: list[str] = []
    at = 0
    while found := _NEXT_FIELD.match(record, at):
        quoted, plain, comma = found.groups()
        field = plain if quoted is None else quoted.replace(b'""', b'"')
        fields.append(field.decode("utf-8"))
        if not comma:
            return fields
        at = found.end()
    return None


def _parse(data: bytes, names: list[str], rules: Rules) -> Record | Rejected:
    """One record on the exact path."""
    if len(data) > MAX_RECORD_BYTES:
        return malformed(f"A record of {len(data)} bytes; at most {MAX_RECORD_BYTES} can be.")
    try:
        fields = _fields(data)
    except UnicodeDecodeError as error:
        return malformed(f"Not UTF-8: {error.reason}.")
    if fields is None:
        return malformed("A quote stands where none may: quote a whole field, and double quotes inside of it.")
    if len(fields) != len(names):
        return malformed(f"The line has {len(fields)} fields, and the header {len(names)}.")
    return check_fields(dict(zip(names, fields, strict=True)), rules)
