"""Summaries in few bytes: what stands in a run of them beside the hash (docs/formats.md, "Summary runs").

Whoever looks a summary up reads its numbers in one place of memory instead of seven, and a run is half as large. The
same is done in C (`store/kernels.c`); what it gives is equal to the byte.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from store import kernels
from store.arrays import I64, U64
from store.schema import RECORD

__all__ = ["NUMBERS", "packed", "unpacked"]

_DECIMAL = RECORD.field("value").type

NUMBERS = {
    "count": pa.int64(),
    "positive": _DECIMAL,
    "negative": _DECIMAL,
    "first": pa.int64(),
    "last": pa.int64(),
    "lastSeq": pa.int64(),
}
"""What is known of a key and unit, as columns."""

_HEADER = 4
_NUMBER_BYTES = 16 * len(NUMBERS)
_WIDE = 15
"""Of the sixteen widths that half a byte can say, the one that stands for all 16 bytes."""

_SUMS = (1, 2)
"""Those of the numbers that have up to 16 bytes; the others have up to 8."""


def packed(unit: pa.StringArray, numbers: Sequence[pa.Array]) -> pa.BinaryArray:
    """Units of at most 255 bytes, and columns as in `NUMBERS`."""
    found = kernels.pack_summaries(unit, numbers)
    return _packed(unit, numbers) if found is None else found


def unpacked(rows: pa.BinaryArray) -> tuple[pa.StringArray, list[pa.Array]]:
    """What was packed. `pa.ArrowInvalid` where something else is among the rows."""
    found = kernels.unpack_summaries(rows, [*NUMBERS.values()])
    return _unpacked(rows) if found is None else found


def _packed(unit: pa.StringArray, numbers: Sequence[pa.Array]) -> pa.BinaryArray:
    """A matrix with all bytes that a row may have, of which those are taken that it has."""
    count, positive, negative, first, last, last_seq = map(_words, numbers)
    words = np.stack([count, _zigzag(positive), _zigzag(negative), first, last - first, last_seq], axis=1)
    matrix = words.view(np.uint8).reshape(len(unit), len(NUMBERS), 16)
    width = np.where(matrix.any(axis=2), 16 - (matrix[:, :, ::-1] != 0).argmax(axis=2), 0)
    width[width >= _WIDE] = 16
    said = np.minimum(width, _WIDE)
    texts = [text.encode() for text in unit.to_pylist()]
    lengths = np.array([*map(len, texts)], np.int64)
    longest = int(lengths.max(initial=0))
    if longest > 255:
        raise ValueError("a unit of more than 255 bytes")
    units = np.zeros((len(unit), longest), np.uint8)
    units[np.arange(longest) < lengths[:, None]] = np.frombuffer(b"".join(texts), np.uint8)
    header = np.column_stack([lengths, said[:, ::2] | said[:, 1::2] << 4]).astype(np.uint8)
    rows = np.concatenate([header, matrix.reshape(len(unit), _NUMBER_BYTES), units], axis=1)
    return _binary(rows[_has(width, lengths, longest)], _HEADER + width.sum(axis=1) + lengths)


def _unpacked(rows: pa.BinaryArray) -> tuple[pa.StringArray, list[pa.Array]]:
    """The same matrix, filled again."""
    texts = rows.to_pylist()
    header = np.frombuffer(b"".join(text[:_HEADER].ljust(_HEADER) for text in texts), np.uint8).reshape(-1, _HEADER)
    width = np.stack([header[:, 1:] & 15, header[:, 1:] >> 4], axis=2).reshape(-1, len(NUMBERS)).astype(np.int64)
    width[width == _WIDE] = 16
    lengths = header[:, 0].astype(np.int64)
    is_whole = _HEADER + width.sum(axis=1) + lengths == np.array([*map(len, texts)], np.int64)
    if not is_whole.all() or (np.delete(width, _SUMS, axis=1) > 8).any():
        raise pa.ArrowInvalid("not what a summary is packed as")
    longest = int(lengths.max(initial=0))
    matrix = np.zeros((len(texts), _HEADER + _NUMBER_BYTES + longest), np.uint8)
    matrix[_has(width, lengths, longest)] = np.frombuffer(b"".join(texts), np.uint8)
    words = np.ascontiguousarray(matrix[:, _HEADER : _HEADER + _NUMBER_BYTES]).view(np.uint64)
    count, positive, negative, first, span, last_seq = words.reshape(-1, len(NUMBERS), 2).transpose(1, 0, 2)
    numbers = [count, _unzigzagged(positive), _unzigzagged(negative), first, first + span, last_seq]
    units = matrix[:, _HEADER + _NUMBER_BYTES :][np.arange(longest) < lengths[:, None]]
    columns = [_column(kind, number) for kind, number in zip(NUMBERS.values(), numbers, strict=True)]
    return _binary(units, lengths).cast(pa.string()), columns


def _has(width: I64, lengths: I64, longest: int) -> npt.NDArray[np.bool_]:
    """Which bytes of the matrix the rows have."""
    numbers = (np.arange(16) < width[:, :, None]).reshape(len(width), _NUMBER_BYTES)
    header = np.ones((len(width), _HEADER), np.bool_)
    return np.concatenate([header, numbers, np.arange(longest) < lengths[:, None]], axis=1)


def _binary(data: npt.NDArray[np.uint8], lengths: I64) -> pa.BinaryArray:
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int32)
    return pa.Array.from_buffers(pa.binary(), len(lengths), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _words(column: pa.Array) -> U64:
    """Numbers as two words each, the lower one first."""
    width = column.type.bit_width // 64
    words = np.frombuffer(column.buffers()[1], np.uint64)[width * column.offset :][: width * len(column)]
    return np.pad(words.reshape(-1, width), ((0, 0), (0, 2 - width)))


def _column(kind: pa.DataType, words: U64) -> pa.Array:
    values = np.ascontiguousarray(words[:, : kind.bit_width // 64])
    return pa.Array.from_buffers(kind, len(words), [None, pa.py_buffer(values)])


def _zigzag(words: U64) -> U64:
    """0, -1, 1, -2, … as 0, 1, 2, 3, …"""
    low, high = words.T
    sign = np.uint64(0) - (high >> 63)
    return np.stack([low << 1 ^ sign, (high << 1 | low >> 63) ^ sign], axis=1)


def _unzigzagged(words: U64) -> U64:
    low, high = words.T
    sign = np.uint64(0) - (low & 1)
    return np.stack([(low >> 1 | high << 63) ^ sign, high >> 1 ^ sign], axis=1)
