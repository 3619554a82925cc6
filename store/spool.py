"""Answers on their way out: what a query gave, kept until whoever asked has read it.

A client may read as slowly as it likes. Its rows wait here, small answers in memory and the rest of large ones in a
file without a name, and not in DuckDB, whose memory is then free for the next question.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

__all__ = ["spooled"]

_MEMORY_BYTES = 1 << 20
"""An answer up to this size never sees the disk."""


@contextlib.contextmanager
def spooled(batches: Iterable[pa.RecordBatch], directory: Path) -> Iterator[Iterator[pa.RecordBatch]]:
    """Take all `batches` now and give them again in their order, holding a few in memory at most.

    The file has no name, so nothing is left of it whatever happens. `OSError` where the disk is full.
    """
    first: list[pa.RecordBatch] = []
    size = 0
    with contextlib.ExitStack() as stack:
        file = writer = None
        for batch in batches:
            if size < _MEMORY_BYTES:
                size += batch.nbytes
                first.append(batch)
                continue
            if writer is None:
                file = stack.enter_context(tempfile.TemporaryFile(dir=directory))
                writer = pa.ipc.new_stream(file, batch.schema, options=pa.ipc.IpcWriteOptions(compression="lz4"))
            writer.write_batch(batch)
        rest: Iterable[pa.RecordBatch] = ()
        if file is not None and writer is not None:
            writer.close()
            file.seek(0)
            rest = stack.enter_context(pa.ipc.open_stream(file))
        yield _in_turn(first, rest)


def _in_turn(first: list[pa.RecordBatch], rest: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    first.reverse()
    while first:
        yield first.pop()
    yield from rest
