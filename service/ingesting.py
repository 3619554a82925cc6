"""`oncelake ingest`: files through the same committer as the service's, without the service."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ingest.batch import Batch, Source
from ingest.decode import Limits, decode_file
from ingest.files import submit_file
from ingest.formats import by_file_name
from ingest.receipts import receipt_of
from service.config import Config
from service.logs import configure_logging
from service.runtime import Lake
from store.errors import InputError

__all__ = ["ingest"]


def ingest(config: Config, files: Sequence[Path], *, dry_run: bool, progress: bool) -> int:
    """Take files; prints a receipt for each. 1 where one could not be decoded to its end."""
    configure_logging("warning", config.log.format)
    for path in files:
        if not path.is_file():
            there = "is no regular file" if path.exists() else "there is no such file"
            raise FileNotFoundError(f"{path}: {there}")
    if dry_run and not Path(config.store.data_dir).exists():
        with tempfile.TemporaryDirectory(prefix="oncelake-") as temp:  # nothing is stored, also no empty store
            store = msgspec.structs.replace(config.store, data_dir=temp)
            return _ingest(msgspec.structs.replace(config, store=store), files, dry_run=True, progress=progress)
    return _ingest(config, files, dry_run=dry_run, progress=progress)


def _ingest(config: Config, files: Sequence[Path], *, dry_run: bool, progress: bool) -> int:
    lake = Lake(config)
    lake.start(inbox=False)
    failed = False
    try:
        for path in files:
            receipt, is_whole = (_dry_run if dry_run else _take)(lake, path, progress=progress)
            failed |= not is_whole
            sys.stdout.write(receipt.decode())
            sys.stdout.flush()
    finally:
        lake.stop()
    return 1 if failed else 0


def _take(lake: Lake, path: Path, *, progress: bool) -> tuple[bytes, bool]:
    """One file; a run that was broken off is gone on with."""
    name = str(path.resolve())
    limits = Limits(chunk_rows=lake.config.ingest.chunk_rows)
    with _bar(path.name, enabled=progress) as advance:
        submission = submit_file(lake.committer, path, name, lake.rules, limits, _now_us(), advance)
        state = submission.wait(lake.committer)
    lake.committer.close_input(name)
    return receipt_of(state, _now_us()), state.failure is None


def _dry_run(lake: Lake, path: Path, *, progress: bool) -> tuple[bytes, bool]:
    """What would become of a file. It is held in memory whole, because its records are decided together."""
    try:
        fmt, compression = by_file_name(path.name)
        limits = Limits(chunk_rows=lake.config.ingest.chunk_rows)
        chunks = tuple(decode_file(path, fmt, compression, lake.rules, limits))
    except InputError as error:
        found = {"file": str(path), "code": error.code, "message": str(error), "position": error.position}
        return msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n", False
    batch = Batch(Source(file=str(path)), chunks, dry_run=True)
    answer = msgspec.to_builtins(lake.committer.submit(batch).result().answer)
    return msgspec.json.format(msgspec.json.encode({**answer, "file": str(path)}), indent=2) + b"\n", True


@contextlib.contextmanager
def _bar(name: str, *, enabled: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar of records on standard error, if that is a terminal."""
    columns = (
        SpinnerColumn(), TextColumn(name), BarColumn(), MofNCompleteColumn(), TextColumn("records"),
        TimeElapsedColumn(),
    )  # fmt: skip
    from rich.console import Console

    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not (enabled and console.is_terminal)) as bar:
        task = bar.add_task(name, total=None)
        yield lambda records: bar.advance(task, records)


def _now_us() -> int:
    return time.time_ns() // 1000
