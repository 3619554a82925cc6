"""The rules of a record over whole columns: which rows surely pass, and the passing rows as the record's columns.

The fast path of every format ends here. A row that does not surely pass is not wrong yet: `ingest.record` decides, so
that this module needs no codes and no messages, and may be as strict as is cheap.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ingest.batch import Record
from ingest.record import Rules
from store.schema import FIELD_LIMIT, RECORD, SCALE, TIME_MAX_US, TIME_MIN_US, UNIT_LIMIT

__all__ = [
    "Checked",
    "byte_lengths",
    "check_columns",
    "columns_of",
    "count_bytes",
    "data_of",
    "has_control_characters",
    "merge",
]

_DECIMAL = pa.decimal128(38, SCALE)
_LIMITS = {"recordId": FIELD_LIMIT, "sourceId": FIELD_LIMIT, "destinationId": FIELD_LIMIT, "unit": UNIT_LIMIT}
_LIMITS["reference"] = FIELD_LIMIT
_CACHED_BYTES = 128 << 10
_CONTROL = r"[\x00-\x1f\x7f-\x{9f}]"
_C1 = re.compile(rb"\xc2[\x80-\x9f]")

# All that is valid RFC 3339 in the years that can pass, leap days included, so that Arrow's cast cannot fail on it.
_DATE = (
    r"(?:19[67][0-9]|19[89][0-9]|20[0-9][0-9]|21[0-9][0-9]|220[01])-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    r"|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    r"|(?:19(?:[68][048]|[79][26])|20(?:[02468][048]|[13579][26])|21(?:0[48]|[2468][048]|[13579][26]))-02-29"
)
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"\A(?:{_DATE})T{_CLOCK}:[0-5][0-9](?:\.[0-9]+)?(?:Z|[+-]{_CLOCK})\z"
_LONGEST_UTC_MICROSECONDS = len("2024-03-01T12:00:00.000000Z")
_NUMBER = r"\A-?(?:0|[1-9][0-9]{0,19})(?:\.[0-9]{1,9})?\z"


@dataclass(frozen=True)
class Checked:
    """`records` are the rows where `sure` is set, in order."""

    records: pa.RecordBatch
    sure: npt.NDArray[np.bool_]


def byte_lengths(column: pa.StringArray) -> npt.NDArray[np.int32]:
    """Bytes of each string (whatever stands behind nulls)."""
    return np.diff(_offsets(column))


def data_of(column: pa.StringArray) -> npt.NDArray[np.uint8]:
    """The bytes of all strings of a column, end to end, without a copy."""
    buffer = column.buffers()[2]
    if len(column) == 0 or buffer is None:
        return np.empty(0, np.uint8)
    offsets = _offsets(column)
    return np.frombuffer(buffer, np.uint8)[offsets[0] : offsets[-1]]


def _offsets(column: pa.StringArray) -> npt.NDArray[np.int32]:
    if len(column) == 0:
        return np.zeros(1, np.int32)
    return np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]


def has_control_characters(text: npt.NDArray[np.uint8], allowed: int = 0) -> bool:
    """Whether valid UTF-8 holds characters of category Cc, other than `allowed` many below U+0020."""
    if not text.size:
        return False
    if count_bytes(text, lambda piece: piece < 0x20) != allowed:
        return True
    if text.max() < 0x7F:
        return False
    return bool((text == 0x7F).any()) or _C1.search(text.data) is not None


def count_bytes(text: npt.NDArray[np.uint8], test: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.bool_]]) -> int:
    """How many bytes pass a test; by pieces, so that what comes between stays in the cache (twice as fast)."""
    pieces = range(0, text.size, _CACHED_BYTES)
    return sum(int(np.count_nonzero(test(text[at : at + _CACHED_BYTES]))) for at in pieces)


def check_columns(
    strings: Mapping[str, pa.StringArray], time: pa.Array, value: pa.Array, rules: Rules, *, clean: bool = False
) -> Checked:
    """Check columns of one length: strings of valid UTF-8, `time` as text or UTC microseconds, `value` as text or
    as decimal with nine digits after the point. `clean`: control characters were already ruled out.
    """
    sure = np.ones(len(time), np.bool_)
    for name, limit in _LIMITS.items():
        _check_text(strings[name], limit, sure, clean=clean)
    if rules.sources is not None:
        sure &= _mask(pc.is_in(strings["sourceId"], pa.array(sorted(rules.sources), strings["sourceId"].type)))
    kind = strings["type"]
    sure &= _mask(pc.or_(pc.equal(kind, "positive"), pc.equal(kind, "negative")))
    columns = {**strings, "time": _check_time(time, sure), "value": _check_value(value, rules, sure)}
    arrays = [columns[name] for name in RECORD.names]
    if not sure.all():
        keep = pa.array(sure)
        arrays = [array.filter(keep) for array in arrays]
    return Checked(pa.RecordBatch.from_arrays(arrays, schema=RECORD), sure)


def _mask(condition: pa.BooleanArray) -> npt.NDArray[np.bool_]:
    if condition.null_count:
        condition = condition.fill_null(False)
    mask: npt.NDArray[np.bool_] = condition.to_numpy(zero_copy_only=False)
    return mask


def _check_text(column: pa.StringArray, limit: int, sure: npt.NDArray[np.bool_], *, clean: bool) -> None:
    if column.null_count:
        sure &= _mask(column.is_valid())
    lengths = byte_lengths(column)
    if lengths.size and (lengths.min() == 0 or lengths.max() > limit):
        characters = pc.utf8_length(column)
        sure &= _mask(pc.and_(pc.greater(characters, 0), pc.less_equal(characters, limit)))
    if not clean and has_control_characters(data_of(column)):
        sure &= ~_mask(pc.match_substring_regex(column, _CONTROL))


def _check_time(time: pa.Array, sure: npt.NDArray[np.bool_]) -> pa.Array:
    """The times as UTC microseconds; rows that do not surely pass lose their `sure` and hold the epoch."""
    target = RECORD.field("time").type
    if pa.types.is_string(time.type):
        good = _mask(pc.match_substring_regex(time, _TIME))
        if not good.all():
            sure &= good
            time = pc.if_else(pa.array(good), time, "1970-01-01T00:00:00Z")
        if len(time) and byte_lengths(time).max() > _LONGEST_UTC_MICROSECONDS:
            time = pc.replace_substring_regex(time, r"(\.[0-9]{6})[0-9]+", r"\1")
        time = time.cast(target)
    elif time.null_count:
        sure &= _mask(time.is_valid())
        time = time.fill_null(pa.scalar(0, pa.int64()).cast(target))
    micros = np.frombuffer(time.buffers()[1], np.int64)[time.offset : time.offset + len(time)] if len(time) else None
    if micros is not None and (micros.min() < TIME_MIN_US or micros.max() >= TIME_MAX_US):
        sure &= (micros >= TIME_MIN_US) & (micros < TIME_MAX_US)
    return time


def _check_value(value: pa.Array, rules: Rules, sure: npt.NDArray[np.bool_]) -> pa.Array:
    """The values as the record's decimal; rows that do not surely pass lose their `sure` and hold 0."""
    if pa.types.is_string(value.type):
        good = _mask(pc.match_substring_regex(value, _NUMBER))
        if not good.all():
            sure &= good
            value = pc.if_else(pa.array(good), value, "0")
        value = value.cast(_DECIMAL)
    zero = pa.scalar(0, pa.int64()).cast(value.type)
    if value.null_count:
        sure &= _mask(value.is_valid())
        value = value.fill_null(zero)
    if not len(value):
        return value.cast(_DECIMAL)
    # Compared as the extremes first: a scan for two numbers is cheaper than two masks.
    least, most = (scalar.as_py() for scalar in pc.min_max(value).values())
    limit = 10**20
    low = 0 if rules.negative_values == "reject" else -limit
    if least < low or most >= limit:
        kind = value.type
        bound, floor = (pa.scalar(limit, kind), pa.scalar(low, kind))
        good = _mask(pc.and_(pc.greater_equal(value, floor), pc.less(value, bound)))
        sure &= good
        value = pc.if_else(pa.array(good), value, zero)
    return value.cast(_DECIMAL)


def columns_of(records: list[Record]) -> pa.RecordBatch:
    """Single records as columns."""
    columns = list(zip(*records, strict=True)) if records else [()] * len(RECORD)
    arrays = [
        pa.array(column, pa.int64()).cast(field.type) if field.name == "time" else pa.array(column, field.type)
        for column, field in zip(columns, RECORD, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=RECORD)


def merge(
    parts: list[tuple[npt.NDArray[np.int64], pa.RecordBatch]],
) -> tuple[npt.NDArray[np.int64], pa.RecordBatch]:
    """Parts of one chunk (row numbers and their records) as one, ordered by row number."""
    filled = [part for part in parts if len(part[0])]
    if len(filled) == 1:
        return filled[0]
    if not filled:
        return np.empty(0, np.int64), columns_of([])
    rows = np.concatenate([part[0] for part in filled])
    records = pa.concat_batches([part[1] for part in filled])
    if (rows[1:] > rows[:-1]).all():
        return rows, records
    order = np.argsort(rows, kind="stable")
    return rows[order], records.take(pa.array(order))
