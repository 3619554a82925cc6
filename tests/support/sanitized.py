"""Run by `tests/unit/test_kernels.py` in a process of its own: the C built with sanitizers, over changed lines.

Prints how many lines were decoded. A byte read or written outside of a buffer ends the process.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa

from store import kernels
from store.canonical import render_records
from store.hashing import Hasher
from store.packed import NUMBERS, packed, unpacked
from store.runs import Run
from store.search import search

LINES = [
    b'{"recordId":"rec-1","time":"2024-03-01T12:00:00.123456Z","sourceId":"s","destinationId":"dest","type":"positive",'
    b'"value":12.5,"unit":"SEK","reference":"r"}',
    '{ "value" : "-0.5" , "unit":"€", "reference":"日本é", "type":"negative", "recordId":"😀",'
    ' "time":"2024-02-29T23:59:59+23:59", "destinationId":"d", "sourceId":"s" }\t'.encode(),
]
_BYTES = b'"\\{}:, 0.-Z\x00\x1f\x7f\x80\xc2\xe2\xf0\xff'


def mutations(line: bytes) -> Iterator[bytes]:
    """The line cut at every byte, and with every byte another one."""
    for at in range(len(line) + 1):
        yield line[:at]
        yield line[at:]
        for byte in _BYTES:
            yield line[:at] + bytes([byte]) + line[at + 1 :]


def _each(lines: list[bytes]) -> pa.RecordBatch:
    """Lines in a text of their own that ends with the last byte of the last one."""
    ends = np.cumsum([len(line) for line in lines])
    starts = ends - [len(line) for line in lines]
    found = kernels.decode_lines(b"".join(lines), starts, ends, longest=1 << 22, negative=True)
    assert found is not None
    assert found[0].num_rows == np.count_nonzero(found[1])
    return found[0]


def _summaries(draw: np.random.Generator) -> None:
    """Numbers of every width, packed and unpacked; and with every byte another one."""
    numbers = [pa.array(draw.integers(0, 1 << 63, 500) >> draw.integers(0, 63, 500)) for _ in range(4)]
    sums = [pa.array([Decimal(int(part) ** 2).scaleb(-9) for part in column.to_pylist()]) for column in numbers[:2]]
    sums = [column.cast(NUMBERS["positive"]) for column in sums]
    columns = [numbers[0], *sums, *numbers[1:]]
    units = pa.array(["€" * (row % 33) for row in range(500)])
    found = packed(units, columns)
    assert unpacked(found) == (units, columns)
    for row in range(40):
        text = found[row].as_py()
        for at in range(4):
            for byte in (0, 1, 7, 8, 9, 15, 16, 0x8F, 0xF0, 0xFF):
                with contextlib.suppress(pa.ArrowInvalid):
                    unpacked(pa.array([text[:at] + bytes([byte]) + text[at + 1 :]]))

    _, offsets, data = found.buffers()
    for at in (1, 20, 499, 500):
        for offset in (-1, 0, 5, len(data), 1 << 30):
            moved = np.frombuffer(offsets, np.int32).copy()
            damaged = pa.Array.from_buffers(pa.binary(), 500, [None, pa.py_buffer(moved), data])
            moved[at] = offset  # behind the back of Arrow, as in a mapped file
            with contextlib.suppress(pa.ArrowInvalid):
                unpacked(damaged)


def main() -> None:
    """All of it."""
    kernels._C = kernels.load(Path(sys.argv[1]))
    lines = [changed for line in LINES for changed in mutations(line)]
    hasher = Hasher(b"seed")
    for line in lines:
        records = _each([line])
        render_records(records)
        hasher.hashes(records)
    records = _each([*lines, *LINES * 40])
    assert records.num_rows >= 80
    texts = render_records(records)
    hasher.hashes(records)
    rows = len(records)
    ones = np.ones(rows, np.int64)
    most = pa.array([Decimal("-" + "9" * 29 + "." + "9" * 9)] * rows, pa.decimal128(38, 9))
    previous = kernels.render_previous(
        ones << 62, ones, ones, ones << 62, pa.array(['"\\' * 128] * rows, pa.string()), (most, most, most)
    )
    assert previous is not None
    lines_of_it = kernels.render_notifications(1 << 62, b"middle", texts, previous, np.arange(rows))
    assert lines_of_it is not None
    draw = np.random.default_rng(7)
    for size in (1, 2, 63, 64, 65, 5_000):
        keys = draw.integers(0, 1 << 64, size, np.uint64) >> np.uint64(size % 2 * 40)
        ordered = keys[kernels.argsort(keys)]
        run = Run([pa.record_batch([ordered, ordered], names=["hi", "lo"])])
        asked = np.sort(np.concatenate([keys, keys + np.uint64(1), keys - np.uint64(1)]))
        found = search([run, run], asked, asked)
        assert len(found) >= 2 * size
        assert found.numbers("lo").tolist() == asked[found.needle].tolist()
    texts = pa.array([b"a" * (number % 70) for number in range(1_000)])
    rows_of = pa.record_batch([np.arange(1_000, dtype=np.uint64)] * 2 + [texts], names=["hi", "lo", "text"])
    pages = Run([rows_of.slice(begin, 100) for begin in range(0, 1_000, 100)])
    found = search([pages], np.arange(1_000, dtype=np.uint64), np.arange(1_000, dtype=np.uint64)).in_order()
    assert found.column("text").equals(texts)
    _summaries(draw)
    kernels.taken(pa.Table.from_batches([records]), draw.permutation(rows))
    print(len(lines))  # noqa: T201


if __name__ == "__main__":
    main()
