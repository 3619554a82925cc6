"""`oncelake replay`: the lines of a feed made again from the stored records, to the byte."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from outbox.feed import state_beside
from outbox.remake import Origin, remade
from service.config import Config
from store.errors import ConfigError, OncelakeError
from store.holding import Holding
from store.reading import read_snapshot

__all__ = ["replay"]


def replay(config: Config, feed: str, first: int, last: int | None, output: Path | None) -> int:
    """Write the lines of seqs `first` to `last` (the newest one where it is None) to a file or standard output.

    Reads only, beside a running service or without one. Nothing of the outbox is read but what is not flushed yet.
    """
    if first < 1:
        raise ConfigError("--from is 0; the first seq is 1")
    if last is not None and last < first:
        raise ConfigError(f"--from {first} is above --to {last}")
    root = Path(config.store.data_dir)
    with Holding(root) as holding, tempfile.TemporaryDirectory(prefix="oncelake-replay-") as temp:
        snapshot = read_snapshot(root, holding)
        end = snapshot.seq if last is None else last
        if end > snapshot.seq or first > snapshot.seq + 1:
            raise OncelakeError(f"{root} has records up to seq {snapshot.seq}: there is no seq {max(end, first)} yet")
        lines = remade(
            Origin(snapshot, state_beside(root).rules), feed, first, end, Path(temp), memory=config.store.query_memory
        )
        with _sink(output) as sink:
            for _, line in lines if first <= end else ():
                sink.write(line + b"\n")
    return 0


@contextlib.contextmanager
def _sink(output: Path | None) -> Iterator[BinaryIO]:
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with output.open("wb") as file:
        yield file
