"""The real service as a process of its own, and what it takes: wall clock, CPU and memory."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Ingested", "Service", "checked_out", "run_json", "verify"]

checked_out = Path(__file__).parents[1]
"""The root of the repository: where `python -m` finds everything."""

_TICKS = os.sysconf("SC_CLK_TCK")
_PATIENCE_S = 1_800.0


@dataclass(frozen=True)
class Ingested:
    """One file through the inbox: seconds until its receipt, until all of it is in the Parquet, and of CPU."""

    records: int
    receipt_s: float
    stored_s: float
    cpu_s: float

    @property
    def rate(self) -> float:
        """Records a second, in the Parquet."""
        return self.records / self.stored_s


class Service:
    """`oncelake serve` over a data directory, with syncs on. `peaks` holds its anonymous memory in MiB, of all runs."""

    peaks: list[float] = []  # noqa: RUF012  (one list for the run on purpose)

    ingests: list[dict[str, Any]] = []  # noqa: RUF012
    """Every file of the run, one by one."""

    def __init__(self, data: Path, **settings: str) -> None:
        self.data = data
        data.mkdir(parents=True, exist_ok=True)
        self._environ = {**os.environ, **settings}
        self.peak = 0.0

    def __enter__(self) -> Service:
        shown = self._command("check-config")
        assert json.loads(shown)["store"]["fsync"] is True, "the bench measures with syncs on"
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._process.poll() is None:
            self.stop()

    def start(self) -> float:
        """Start it; seconds until its address line."""
        self._log = (self.data.parent / f"{self.data.name}.log").open("ab")
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "serve", "--data", str(self.data), "--port", "0"],
            stdout=subprocess.PIPE, stderr=self._log, env=self._environ, cwd=checked_out,
        )  # fmt: skip
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode()
        took = time.perf_counter() - began
        found = re.search(r"http://([^:/]+):(\d+)", line)
        assert found, f"the service did not start: see {self._log.name}"
        self.host, self.port = found[1], int(found[2])
        threading.Thread(target=self._sample, args=(self._process,), daemon=True).start()
        return took

    def stop(self) -> None:
        """In order."""
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(300) == 0, f"the service failed: see {self._log.name}"
        self._closed()

    def kill(self) -> None:
        """`kill -9`."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(60)
        self._closed()

    def _closed(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()
        Service.peaks.append(self.peak)

    def _sample(self, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(OSError):
            while process.poll() is None:
                self.peak = max(self.peak, float(self.memory["RssAnon"]))
                time.sleep(0.1)

    @property
    def memory(self) -> dict[str, int]:
        """`RssAnon` and `RssFile` in MiB, of the process and those that it started; what they share counts for each."""
        found = {"RssAnon": 0, "RssFile": 0}
        for pid in _tree(self.pid):
            with contextlib.suppress(OSError):
                for name, kib in re.findall(r"(RssAnon|RssFile):\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()):
                    found[name] += int(kib) // 1024
        return found

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def cpu_s(self) -> float:
        """CPU seconds that it has used."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def log(self) -> str:
        """What it wrote to standard error, of all its starts."""
        return Path(self._log.name).read_text()

    def health(self) -> dict[str, Any]:
        """GET /health: the store."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            connection.request("GET", "/health")
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        found: dict[str, Any] = answer.get("components", answer)["store"]
        return found

    def staged(self, source: Path, name: str) -> Path:
        """A file beside the inbox, to be renamed into it."""
        staged = self.data / f"{name}.staged"
        try:
            os.link(source, staged)
        except OSError:
            shutil.copyfile(source, staged)
        return staged

    def ingest(self, source: Path, name: str, records: int) -> Ingested:
        """Rename a file into the inbox and wait until it has its receipt and every record is in the Parquet."""
        staged = self.staged(source, name)
        receipt = self.data / "processed" / f"{name}.receipt.json"
        before = int(self.health()["seq"])
        cpu = self.cpu_s
        began = time.perf_counter()
        staged.rename(self.data / "inbox" / name)
        end = began + _PATIENCE_S
        while not receipt.exists():
            assert self._process.poll() is None, f"the service ended: see {self._log.name}"
            assert time.perf_counter() < end, "no receipt in time"
            time.sleep(0.01)
        receipted = time.perf_counter()
        told = json.loads(receipt.read_bytes())
        assert told["accepted"] == records, f"{before} records before, {records} given, and the receipt tells {told}"
        while self.health()["flushedSeq"] < told["lastSeq"]:  # others may post meanwhile
            assert time.perf_counter() < end, "not flushed in time"
            time.sleep(0.02)
        stored = time.perf_counter()
        done = Ingested(records, receipted - began, stored - began, self.cpu_s - cpu)
        Service.ingests.append({"file": name, "before": before, **asdict(done)})
        return done

    def _command(self, *arguments: str) -> bytes:
        return subprocess.run(
            [sys.executable, "-m", "service.cli", *arguments, "--data", str(self.data)],
            check=True, capture_output=True, cwd=checked_out, env=self._environ,
        ).stdout  # fmt: skip


def verify(data: Path) -> None:
    """`oncelake verify` must find nothing: no figure is bought by a weaker promise."""
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "verify", "--data", str(data)],
        check=False, capture_output=True, cwd=checked_out,
    )  # fmt: skip
    assert done.returncode == 0, f"verify found a difference in {data}: {done.stdout[-2000:]!r}"


def _tree(pid: int) -> list[int]:
    """A process and all that it started, but for what is about to become one (and has the memory of its parent)."""
    found = [pid]
    mine = Path(f"/proc/{pid}/cmdline").read_bytes()
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                started = map(int, children.read_text().split())
                found += [child for child in started if Path(f"/proc/{child}/cmdline").read_bytes() != mine]
    return found


def run_json(*command: str) -> dict[str, Any]:
    """Run a process from the root of the repository; the JSON of its last line."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=checked_out)
    assert done.returncode == 0, f"{' '.join(command[:4])} failed: {done.stderr[-2000:]}"
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
