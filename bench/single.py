"""POSTs of one record, answered when durable, beside the bare framework that stores nothing."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
from typing import Any

from bench.context import Context
from bench.load import run_load
from bench.measure import Line, alternate
from bench.process import Service, checked_out, verify

__all__ = ["single"]

_TARGETS = {128: 0.5, 1: None}


def single(context: Context) -> list[Line]:
    """128 connections and one."""
    lines = []
    seconds = 1.0 if context.options.quick else 3.0
    for connections, target in _TARGETS.items():
        found: dict[str, list[dict[str, Any]]] = {"ours": [], "bare": []}

        def ours(number: int, connections: int = connections, found: list[dict[str, Any]] = found["ours"]) -> float:
            data = context.fresh("single")
            with Service(data) as service:
                found.append(
                    run_load(service.host, service.port, connections=connections, seconds=seconds, seed=number)
                )
            if number == 0:
                verify(data)
            shutil.rmtree(data)
            return float(found[-1]["rate"])

        def bare(number: int, connections: int = connections, found: list[dict[str, Any]] = found["bare"]) -> float:
            process = subprocess.Popen([sys.executable, "-m", "bench.bare"], stdout=subprocess.PIPE, cwd=checked_out)
            try:
                assert process.stdout is not None
                port = int(process.stdout.readline())
                found.append(run_load("127.0.0.1", port, connections=connections, seconds=seconds, seed=number))
            finally:
                process.terminate()
                process.wait(10)
                process.stdout.close()
            return float(found[-1]["rate"])

        mine, theirs = alternate(context.rounds, ours, bare)
        what = f"POST, {connections} connection{'s' if connections > 1 else ''}"
        told = "; ".join(
            f"{name} p50 {statistics.median(run['p50'] for run in runs):.1f} ms, "
            f"p99 {statistics.median(run['p99'] for run in runs):.1f} ms"
            for name, runs in found.items()
        )
        lines.append(Line("single", what, "requests/s", mine, "bare Litestar", theirs, target, note=told))
    return lines
