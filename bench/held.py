"""How long the interpreter is held at once: nothing else can be answered meanwhile."""

from __future__ import annotations

import os
import shutil
import threading
import time

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
    """Sleeps for two milliseconds, again and again, and notes by how much it wakes too late.

    It goes before all others for a core, so what it waits for is the interpreter.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.late: list[float] = []
        self.allowed = threading.Event()
        self.is_allowed = False
        self.ended = False

    def run(self) -> None:
        try:
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_FIFO, os.sched_param(50))
            self.is_allowed = True
        except PermissionError:
            return
        finally:
            self.allowed.set()
        while not self.ended:
            began = time.perf_counter()
            time.sleep(_EVERY_S)
            self.late.append((time.perf_counter() - began - _EVERY_S) * 1e3)


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
            watch.start()
            watch.allowed.wait()
            if not watch.is_allowed:
                raise Skip("a thread with real-time priority needs root")
            for given in inputs:
                limits = Limits(chunk_rows=config.ingest.chunk_rows)
                began_us = time.time_ns() // 1000
                submit_file(lake.committer, given.path, str(given.path), lake.rules, limits, began_us).wait(
                    lake.committer
                )
    finally:
        watch.ended = True
        lake.stop()
        shutil.rmtree(data, ignore_errors=True)
    late = sorted(watch.late)
    note = f"99% below {figure(late[len(late) * 99 // 100])} ms, {sum(ms > 20 for ms in late)} of {len(late)} above 20"
    what = f"longest wait for the interpreter, {_FILES * context.records:,} records in process"
    return [Line("held", what, "ms", [late[-1]], target=50.0, at_least=False, note=note)]
