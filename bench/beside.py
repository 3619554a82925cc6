"""Single POSTs and questions while a bulk file runs."""

from __future__ import annotations

import http.client
import os
import shutil
import statistics
import threading
import time

from bench.context import BULK, Context
from bench.load import run_load
from bench.measure import Line
from bench.process import Service

__all__ = ["beside"]

_FILES = 5
_CONNECTIONS = 8


def beside(context: Context) -> list[Line]:
    """Five files in the inbox, eight clients that post one record after the other, and one that asks for totals."""
    data = context.fresh("beside")
    inputs = [context.input(first=number * context.records) for number in range(_FILES)]
    asked: list[float] = []
    with Service(data, **BULK) as service:
        for number, given in enumerate(inputs):
            shutil.copyfile(given.path, data / f"{number}.staged")
        os.sync()  # or the kernel writes them all in the middle of the row, and every commit waits for that
        for number in range(_FILES):
            (data / f"{number}.staged").rename(data / "inbox" / f"{number}.ndjson")
        began = time.perf_counter()
        finished = threading.Event()
        asking = threading.Thread(target=_ask, args=(service, asked, finished))
        asking.start()
        runs = []
        last = data / "processed" / f"{_FILES - 1}.ndjson.receipt.json"
        while not last.exists():
            runs.append(run_load(service.host, service.port, connections=_CONNECTIONS, seconds=2, seed=len(runs)))
        seconds = time.perf_counter() - began
        finished.set()
        asking.join()
    shutil.rmtree(data)
    rate = _FILES * context.records / seconds
    note = (
        f"{rate:,.0f} records/s of the file meanwhile, {statistics.median(run['rate'] for run in runs):,.0f} POSTs/s, "
        f"totals in {statistics.median(asked) * 1e3:.0f} ms, at most {max(asked) * 1e3:.0f} ms"
    )
    what = f"single POSTs while {_FILES * context.records:,} records come in by file, {_CONNECTIONS} connections"
    target = 250.0 if context.records >= 1_000_000 else None
    return [
        Line("beside", f"{what}, p99", "ms", [run["p99"] for run in runs], target=target, at_least=False, note=note),
        Line("beside", f"{what}, p50", "ms", [run["p50"] for run in runs]),
    ]


def _ask(service: Service, asked: list[float], finished: threading.Event) -> None:
    """Totals, twice a second."""
    while not finished.wait(0.5):
        began = time.perf_counter()
        connection = http.client.HTTPConnection(service.host, service.port, timeout=60)
        connection.request("GET", "/records/aggregations?include=totals&startTime=2024-03-02T12:20:00Z")
        response = connection.getresponse()
        assert response.status == 200
        response.read()
        connection.close()
        asked.append(time.perf_counter() - began)
