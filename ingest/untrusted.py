"""Opens Parquet and Arrow that a source wrote, which may be made to harm: it runs in a process of its own.

pyarrow takes sizes and counts of such files at their word. Of 24,000 files with a few bytes changed five ended the
process by an exception that no Python code can catch ("Definition level histogram size mismatch"), and 300 bytes can
ask for 4 GB (apache/arrow#49955). `ingest.apart` hands the bytes here, and gets batches of the known columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ingest.formats import Format
from ingest.record import Rules
from ingest.streams import Limits, too_many_records
from store.errors import InvalidSchemaError, OncelakeError, TooLargeError, UndecodableError
from store.schema import CANONICAL_FIELDS

__all__ = ["batches_of", "is_text", "longest_entry", "translated"]

_BATCH_TEXT_BYTES = 64 << 20
_ARROW_MAGIC = b"ARROW1"
_ALLOWED = {
    "time": "a timestamp with a time zone, or an RFC 3339 string",
    "value": "a decimal, an integer or a string",
}


def batches_of(
    source: pa.NativeFile, fmt: Format, rules: Rules, limits: Limits, offset: int
) -> Iterator[pa.RecordBatch]:
    """The known columns from row `offset` on, in batches of `limits.chunk_rows` rows at most."""
    if source.size() == 0:
        return
    read = _parquet_batches if fmt is Format.PARQUET else _arrow_batches
    for batch in read(source, rules, limits, offset):
        longest = max(longest_entry(batch.column(name)) for name in CANONICAL_FIELDS)
        rows = max(1, min(limits.chunk_rows, _BATCH_TEXT_BYTES // max(longest, 1)))
        for first in range(0, batch.num_rows, rows):
            yield batch.slice(first, rows)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Foreign exceptions as ours: these bytes are a source's, so that anything may go wrong in reading them."""
    try:
        yield
    except OncelakeError:
        raise
    except (pa.ArrowException, ArithmeticError, OSError, MemoryError, ValueError, TypeError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UndecodableError(f"The {what} cannot be read: {reason[:200]}") from error


def _parquet_batches(source: pa.NativeFile, rules: Rules, limits: Limits, offset: int) -> Iterator[pa.RecordBatch]:
    with translated("Parquet file"):
        file = pq.ParquetFile(source, thrift_string_size_limit=16 << 20, thrift_container_size_limit=1 << 20)
        _check_schema(file.schema_arrow, rules)
        _check_sizes(file.metadata, source.size(), limits)
    before = 0
    for group in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if before + rows > offset:
            for batch in _translate_each(partial(_group_batches, file, source, group, limits), "Parquet file"):
                rest = batch.slice(min(max(offset - before, 0), batch.num_rows))
                before += batch.num_rows
                if rest.num_rows:
                    yield rest
        else:
            before += rows


def _translate_each(batches: Callable[[], Iterator[pa.RecordBatch]], what: str) -> Iterator[pa.RecordBatch]:
    with translated(what):
        iterator = iter(batches())
    while True:
        with translated(what):
            batch = next(iterator, None)
        if batch is None:
            return
        yield batch


def _check_sizes(metadata: pq.FileMetaData, size: int, limits: Limits) -> None:
    """Refuse metadata that claims what the file cannot hold, or more than the limit."""
    total = 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            if not 0 <= column.total_compressed_size <= size or column.data_page_offset > size:
                raise UndecodableError("The Parquet file claims columns that are larger than the file itself.")
            # Lists and their like have as many values as they please: they are read of no file, only ignored.
            is_misfit = column.path_in_schema in CANONICAL_FIELDS and column.num_values != group.num_rows
            if column.total_uncompressed_size < 0 or group.num_rows < 0 or is_misfit:
                raise UndecodableError("The Parquet file claims sizes that do not fit each other.")
            total += column.total_uncompressed_size
    if limits.max_records is not None and metadata.num_rows > limits.max_records:
        raise too_many_records(limits.max_records)
    most = limits.max_decompressed_bytes
    if most is not None and (total > most or metadata.num_rows > most):
        raise TooLargeError(
            f"The Parquet file holds more than {most} bytes when decompressed (ingest.max_decompressed_bytes): "
            "send smaller batches, or drop a file.",
            code="too_large_decompressed",
        )


def _group_batches(file: pq.ParquetFile, source: pa.NativeFile, group: int, limits: Limits) -> Iterator[pa.RecordBatch]:
    """The batches of a row group, small where a dictionary holds long texts: decoded, each row has its own."""
    schema = file.schema_arrow
    texts = [name for name in CANONICAL_FIELDS if is_text(schema.field(name).type)]
    longest = 0
    metadata = file.metadata.row_group(group)
    by_path = {metadata.column(at).path_in_schema: metadata.column(at) for at in range(metadata.num_columns)}
    packed = [name for name in texts if name in by_path and by_path[name].has_dictionary_page]
    if packed and metadata.num_rows:
        probe = pq.ParquetFile(source, metadata=file.metadata, read_dictionary=packed)
        for batch in probe.iter_batches(1, row_groups=[group], columns=packed, use_threads=False):
            longest = max(longest_entry(column) for column in batch.columns)
            break
    rows = max(1, min(limits.chunk_rows, _BATCH_TEXT_BYTES // max(longest, 1)))
    yield from file.iter_batches(rows, row_groups=[group], columns=list(CANONICAL_FIELDS), use_threads=False)


def _arrow_batches(source: pa.NativeFile, rules: Rules, limits: Limits, offset: int) -> Iterator[pa.RecordBatch]:
    """Of an Arrow stream or file: its content says which."""
    before = 0
    for batch in _translate_each(lambda: _ipc_batches(source, rules), "Arrow data"):
        rest = batch.slice(min(max(offset - before, 0), batch.num_rows))
        before += batch.num_rows
        if limits.max_records is not None and before > limits.max_records:
            raise too_many_records(limits.max_records)
        if rest.num_rows:
            yield rest


def _ipc_batches(source: pa.NativeFile, rules: Rules) -> Iterator[pa.RecordBatch]:
    head = source.read(len(_ARROW_MAGIC))
    source.seek(0)
    if head == _ARROW_MAGIC:
        file = pa.ipc.open_file(source)
        _check_schema(file.schema, rules)
        batches = (file.get_batch(at) for at in range(file.num_record_batches))
    else:
        stream = pa.ipc.open_stream(source)
        _check_schema(stream.schema, rules)
        batches = iter(stream)
    for batch in batches:
        known = batch.select(list(CANONICAL_FIELDS))
        for column in known.columns:
            # Hostile offsets would be read past the end; texts are looked at one by one later.
            _as_binary(column).validate(full=True)
        yield known


def _as_binary(column: pa.Array) -> pa.Array:
    """A text column as bytes: validation of those checks offsets, and leaves UTF-8 to the rows."""
    if pa.types.is_string(column.type):
        return pa.Array.from_buffers(pa.binary(), len(column), column.buffers(), offset=column.offset)
    if pa.types.is_large_string(column.type):
        return pa.Array.from_buffers(pa.large_binary(), len(column), column.buffers(), offset=column.offset)
    if pa.types.is_dictionary(column.type):
        return pa.DictionaryArray.from_arrays(column.indices, _as_binary(column.dictionary), safe=False)
    return column


def longest_entry(column: pa.Array) -> int:
    """Bytes of the longest entry in the dictionary of a column."""
    if not pa.types.is_dictionary(column.type) or not len(column.dictionary):
        return 0
    return int(pc.max(pc.binary_length(column.dictionary.cast(pa.large_binary()))).as_py() or 0)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds texts, dictionary-encoded or not."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_allowed(name: str, kind: pa.DataType) -> bool:
    if is_text(kind):
        return True
    if name == "value":
        return bool(pa.types.is_integer(kind) or pa.types.is_decimal(kind))
    return name == "time" and bool(pa.types.is_timestamp(kind) and kind.tz)


def _check_schema(schema: pa.Schema, rules: Rules) -> None:
    for name in CANONICAL_FIELDS:
        found = schema.get_all_field_indices(name)
        if len(found) != 1:
            said = f"stands {len(found)} times" if found else "is missing"
            raise InvalidSchemaError(f"The column {name!r} {said}. The columns are {', '.join(CANONICAL_FIELDS)}.")
        kind = schema.field(found[0]).type
        if not _is_allowed(name, kind):
            allowed = _ALLOWED.get(name, "a string")
            raise InvalidSchemaError(f"The column {name!r} is of the type {str(kind)[:100]}; it must be {allowed}.")
    if rules.unknown_fields == "reject":
        for name in schema.names:
            if name not in CANONICAL_FIELDS:
                shown = name[:64].encode("utf-8", "backslashreplace").decode()
                known = ", ".join(CANONICAL_FIELDS)
                raise InvalidSchemaError(f"The column {shown!r} is not known. The columns are {known}.")
