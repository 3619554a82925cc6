"""How each figure changes while 1, 10 and 100 million records are stored: one lake, grown through the real inbox."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from bench.context import BULK, Context, Input
from bench.load import run_load
from bench.measure import Line, Skip, figure, say
from bench.places import Places
from bench.process import Service

__all__ = ["growth"]

_SETTINGS = {
    **BULK,
    "ONCELAKE_OUTBOX__RETENTION": "1s",  # the lines of 100 million records are 50 GB
    "ONCELAKE_OUTBOX__SEGMENT_BYTES": str(64 << 20),
}
_FREE_BYTES = 12 << 30
"""The run ends before the disk has less."""

_TARGETS_FROM = 100_000_000
"""Records: what is asked for is asked for with so many."""

_ELSEWHERE = 10_000_000_000
"""Added to a size: the first number of records that no other file has."""

_BESIDE_PART = 8
"""Batches are posted beside the last eighth of the files: at 100 million the largest merges of runs run then."""

_SETTLE_S = 8.0
"""A bulk file is flushed, and its runs are merged, within so long."""

_DROP_CACHES = "/proc/sys/vm/drop_caches"

_HOURS = ("2024-03-02T12:00:00Z", "2024-03-05T12:00:00Z")
_MINUTES = ("2024-03-02T12:20:00Z", "2024-03-05T12:20:00Z")


@dataclass(frozen=True)
class _Batch:
    """One that was posted beside a file: milliseconds, and whether the machine had its memory taken away meanwhile."""

    took: float
    is_taken: bool


def growth(context: Context) -> list[Line]:
    """Every figure at each size; asked for by `--growth`, the sizes in millions of records."""
    if not context.options.growth:
        raise Skip("takes a quarter of an hour and 30 GB: ask for it with --growth 1,10,100")
    sizes = [int(float(text) * 1e6) for text in context.options.growth.split(",")]
    data = context.work / "growth"
    lines: list[Line] = []
    stored = 0
    with Service(data, **_SETTINGS) as service:
        for size in sizes:
            rates: list[float] = []
            beside: list[_Batch] = []
            while stored < size:
                if shutil.disk_usage(data).free < _FREE_BYTES:
                    say(f"  stopped at {stored:,}: {figure(shutil.disk_usage(data).free / 2**30)} GiB are free")
                    return lines
                given = context.input("parquet", first=stored, records=min(context.records, size - stored))
                is_beside = stored + given.records > size - size // _BESIDE_PART
                with Places() as places, _posting(service, size, places, beside if is_beside else None):
                    done = service.ingest(given.path, given.path.name, given.records)
                given.path.unlink()
                (data / "processed" / given.path.name).unlink()
                context.add_point("Parquet", stored, done)
                stored += given.records
                if not (is_beside and rates):
                    rates.append(done.rate)
                say(f"  {stored:,} stored: {done.rate:,.0f} records/s, {_memory(service)}; {places.told()}")
            before_questions = service.peak
            given = context.input("parquet", first=size + _ELSEWHERE)
            lines += _figures(service, size, rates[-6:], beside, given)
            lines.append(Line("growth", f"{size:,} stored: most RssAnon until then", "MiB", [before_questions]))
    lines.append(Line("growth", "most RssAnon of the run", "MiB", [service.peak], target=1024, at_least=False))
    return lines


@contextlib.contextmanager
def _posting(service: Service, size: int, places: Places, batches: list[_Batch] | None) -> Iterator[None]:
    """Meanwhile, and until its flush and merges are done, batches of 1,000 every tenth of a second."""
    if batches is None:
        yield
        return
    stop = threading.Event()
    times: list[tuple[float, float]] = []

    def post() -> None:
        for number in itertools.count(1_000 * (len(batches) + 1)):
            began = time.monotonic()
            times.append((began, _post(service, size, number)))
            if stop.wait(0.1):
                return

    thread = threading.Thread(target=post)
    thread.start()
    yield
    time.sleep(_SETTLE_S)
    stop.set()
    thread.join()
    batches += [_Batch(took, places.taken(began, began + took / 1e3)) for began, took in times]


def _figures(service: Service, size: int, rates: list[float], beside: list[_Batch], given: Input) -> list[Line]:
    """What there is to measure at one size; the file given is stored at the end of it."""
    lines = [Line("growth", f"{size:,} stored: bulk Parquet, the last files that are alone", "records/s", rates)]
    lines[0].note = "of a single file: with batches beside it" if len(rates) == 1 else ""

    def line(what: str, unit: str, values: list[float], note: str = "", most: float | None = None) -> None:
        target = most if size >= _TARGETS_FROM else None
        lines.append(Line("growth", f"{size:,} stored: {what}", unit, values, target=target, at_least=False, note=note))

    load = run_load(service.host, service.port, connections=1, seconds=3, seed=size)
    line("single POST, one connection, p50", "ms", [load["p50"]], f"p99 {load['p99']:.1f} ms")
    batches = [_post(service, size, number) for number in range(40)]
    line("POST of a batch of 1,000", "ms", batches, f"most {max(batches):.0f} ms", most=30)
    taken = [batch.took for batch in beside if batch.is_taken]
    told = f"{len(beside):,} batches; {len(taken)} while all memory of the machine was taken away"
    line("the same beside bulk files, their flushes and merges", "ms", [batch.took for batch in beside], told)
    others = batches + [batch.took for batch in beside if not batch.is_taken]
    line("the longest of these", "ms", [max(others + taken)], most=250)
    line("the longest but for the machine's memory", "ms", [max(others)], most=250)
    totals = "/records/aggregations?include=totals"
    hours = f"&startTime={_HOURS[0]}&endTime={_HOURS[1]}"
    line("totals of everything", "ms", _asked(service, totals), most=100)
    line("totals of three days, whole hours", "ms", _asked(service, totals + hours))
    minutes = f"&startTime={_MINUTES[0]}&endTime={_MINUTES[1]}"
    line("totals of three days, begun and ended within an hour", "ms", _asked(service, totals + minutes, 3))
    line("totals of one destination", "ms", _asked(service, totals + "&destinationId=dest-7"))
    one = f"/records/aggregations?destinationId=dest-7{hours}&limit=100"
    line("100 records of one destination", "ms", _asked(service, one, 3))
    ids = [f"rec-1-{size * place // 31}" for place in range(1, 30)]
    line("one recordId", "ms", [_asked(service, f"/records/{quote(name)}", 1)[0] for name in ids])
    lines[-1].note = f"most {max(lines[-1].ours):.1f} ms"
    line("memory of the service (RssAnon)", "MiB", [float(service.memory["RssAnon"])], _memory(service))
    service.kill()
    line("start after kill -9", "s", [service.start()], most=3)
    if os.access(_DROP_CACHES, os.W_OK):
        service.kill()
        os.sync()
        Path(_DROP_CACHES).write_text("3")
        line("start with an empty page cache", "s", [service.start()])
        cold = [_post(service, size, number) for number in range(2_000_000, 2_000_010)]
        line("the first batches of 1,000 then", "ms", cold, f"the first {cold[0]:.0f} ms")
    took, found = _start_within_a_load(service, given)
    line("start after kill -9 within a bulk file", "s", [took], f"{found:,} records were not in the Parquet", most=3)
    return lines


def _start_within_a_load(service: Service, given: Input) -> tuple[float, int]:
    """Seconds of a start behind `kill -9`, and how many records it found that were not in the Parquet."""
    name = given.path.name
    half = service.health()["seq"] + given.records // 2
    service.staged(given.path, name).rename(service.data / "inbox" / name)
    while service.health()["seq"] < half:
        time.sleep(0.01)
    service.kill()
    took = service.start()
    found = re.findall(r"(\d+) of them not in the Parquet", service.log())[-1]
    receipt = service.data / "processed" / f"{name}.receipt.json"
    while not receipt.exists():
        service.health()  # or it would be waited for one that has ended
        time.sleep(0.1)
    (service.data / "processed" / name).unlink()
    given.path.unlink()
    return took, int(found)


def _asked(service: Service, target: str, times: int = 7) -> list[float]:
    """Milliseconds of each answer, read to its end."""
    return [_timed(lambda: _request(service, "GET", target)) for _ in range(times)]


def _post(service: Service, size: int, number: int) -> float:
    """Milliseconds until a batch of 1,000 new records is durable."""
    body = "\n".join(
        json.dumps(
            {
                "recordId": f"batch-{size}-{number}-{row}",
                "time": f"2024-03-0{row % 7 + 1}T10:00:00Z",
                "sourceId": "source-1",
                "destinationId": f"dest-{row}",
                "type": "positive",
                "value": "1.5",
                "unit": "SEK",
                "reference": f"batch-{size}-{number}",
            }
        )
        for row in range(1_000)
    )
    return _timed(lambda: _request(service, "POST", "/records", body.encode()))


def _request(service: Service, method: str, target: str, body: bytes | None = None) -> bytes:
    connection = http.client.HTTPConnection(service.host, service.port, timeout=600)
    try:
        connection.request(method, target, body, {"Content-Type": "application/x-ndjson"} if body else {})
        response = connection.getresponse()
        found = response.read()
    finally:
        connection.close()
    assert response.status == 200, f"{target}: {response.status} {found[:500]!r}"
    return found


def _timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1e3


def _memory(service: Service) -> str:
    found = service.memory
    return f"RssAnon {found['RssAnon']} MiB (at most {service.peak:,.0f} so far), RssFile {found['RssFile']} MiB"
