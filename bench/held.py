"""How long the interpreter is held at once: nothing else can be answered meanwhile."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import msgspec

from bench.context import Context
from bench.measure import Line, Skip, figure
from ingest.decode import Limits
from ingest.files import submit_file
from service.config import Config
from service.runtime import Lake
from service.serve import modules_kept

__all__ = ["held"]

_FILES = 4
_EVERY_S = 0.002


class _Watch(threading.Thread):
    """Sleeps for two milliseconds, again and again, and notes by how many it wakes too late."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.late_ms: list[float] = []
        self.ended = False

    def run(self) -> None:
        while not self.ended:
            began = time.perf_counter()
            time.sleep(_EVERY_S)
            self.late_ms.append((time.perf_counter() - began - _EVERY_S) * 1e3)

    def begin(self) -> None:
        """Start it, before all others for a core: what it waits for then is the interpreter."""
        self.start()
        assert self.native_id is not None
        try:
            os.sched_setscheduler(self.native_id, os.SCHED_FIFO, os.sched_param(50))
        except PermissionError:
            raise Skip("a thread with real-time priority needs root") from None


def held(context: Context) -> list[Line]:
    """Four files through a lake in this process, with its flushes, merges and compactions."""
    inputs = [context.input(first=number * context.records) for number in range(_FILES)]
    data = context.fresh("held")
    config = Config()
    lake = Lake(msgspec.structs.replace(config, store=msgspec.structs.replace(config.store, data_dir=str(data))))
    watch = _Watch()
    lake.start(inbox=False)
    try:
        with modules_kept():
            watch.begin()
            for given in inputs:
                _take(lake, given.path)
    finally:
        watch.ended = True
        lake.stop()
        shutil.rmtree(data)
    late = sorted(watch.late_ms)
    note = f"99% below {figure(late[len(late) * 99 // 100])} ms, {sum(ms > 20 for ms in late)} of {len(late)} above 20"
    what = f"longest wait for the interpreter, {_FILES * context.records:,} records in process"
    return [Line("held", what, "ms", [late[-1]], target=50.0, at_least=False, note=note)]


def _take(lake: Lake, path: Path) -> None:
    """A file, until all of it is committed."""
    limits = Limits(chunk_rows=lake.config.ingest.chunk_rows)
    submission = submit_file(lake.committer, path, str(path), lake.rules, limits, time.time_ns() // 1000)
    submission.wait(lake.committer)
