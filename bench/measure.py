"""What every row shares: rounds that alternate ours and the peer's, ratios of the same round, and the tables of it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Line", "Others", "Skip", "alternate", "code", "figure", "machine", "markdown", "say", "spread"]

_PACKAGES = ("duckdb", "litestar", "msgspec", "numpy", "pyarrow", "uvicorn", "uvloop")


class Skip(Exception):  # noqa: N818  (not an error: the row cannot run here, and says why)
    """A row that cannot run on this machine."""


@dataclass
class Line:
    """One line of the table: our figures and the peer's, round by round.

    `target` is a bound on the median ratio (or on ours, where there is no peer): `at_least` says of which kind.
    """

    row: str
    what: str
    unit: str
    ours: list[float]
    peer: str = ""
    peers: list[float] = field(default_factory=list)
    target: float | None = None
    at_least: bool = True
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """Ours divided by the peer's, round by round."""
        return [ours / peer for ours, peer in zip(self.ours, self.peers, strict=False)]

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None where there is none."""
        if self.target is None:
            return None
        median = statistics.median(self.ratios or self.ours)
        return median >= self.target if self.at_least else median <= self.target

    def to_json(self) -> dict[str, Any]:
        """Everything, with medians."""
        spreads = {
            name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
            for name, values in (("ours", self.ours), ("peers", self.peers), ("ratios", self.ratios))
            if values
        }
        return {**asdict(self), "ratios": self.ratios, "met": self.met, "spread": spreads}


class Others:
    """How many cores other processes kept busy since it was made: what a figure is worth depends on it."""

    def __init__(self) -> None:
        self._began = self._now()

    @property
    def cores(self) -> float:
        """Mean so far. Ours are this process and the children that have ended."""
        (at, busy), (began, before) = self._now(), self._began
        return round(max(0.0, busy - before) / (at - began), 2)

    def _now(self) -> tuple[float, float]:
        fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        busy = sum(fields[:3]) + sum(fields[5:7])
        used = os.times()
        own = used.user + used.system + used.children_user + used.children_system
        return time.monotonic(), busy / os.sysconf("SC_CLK_TCK") - own


def say(text: str) -> None:
    """Progress, on standard error."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def alternate(
    rounds: int, ours: Callable[[int], float], peer: Callable[[int], float]
) -> tuple[list[float], list[float]]:
    """Both in every round, and each first in every other one."""
    mine, theirs = [], []
    for number in range(rounds):
        if number % 2:
            theirs.append(peer(number))
            mine.append(ours(number))
        else:
            mine.append(ours(number))
            theirs.append(peer(number))
        say(f"  round {number + 1} of {rounds}: {figure(mine[-1])} beside {figure(theirs[-1])}")
    return mine, theirs


def machine(work: Path) -> dict[str, Any]:
    """Where this ran, and on what."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    filesystem = subprocess.run(["stat", "-f", "-c", "%T", str(work)], capture_output=True, text=True, check=False)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memoryGiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "filesystem": filesystem.stdout.strip(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "syncMs": _sync_ms(work),
        "commit": commit.stdout.strip(),
        "loadBefore": list(os.getloadavg()),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _sync_ms(work: Path) -> float:
    """Median of appending 500 bytes and fdatasync: what a lone commit pays for every file that grew."""
    took = []
    with (work / "sync").open("wb", buffering=0) as file:
        for _ in range(60):
            began = time.perf_counter()
            file.write(b"x" * 500)
            os.fdatasync(file.fileno())
            took.append((time.perf_counter() - began) * 1e3)
    return round(statistics.median(took), 2)


def code() -> str:
    """A hash of all code: a run whose code changes under it has measured several things."""
    digest = hashlib.sha256()
    for package in ("api", "ingest", "outbox", "service", "store", "bench"):
        for path in sorted((Path(__file__).parents[1] / package).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def figure(value: float) -> str:
    """Three digits that matter, thousands apart."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def spread(values: list[float]) -> str:
    """Median (min to max)."""
    if not values:
        return "–"
    median = figure(statistics.median(values))
    return median if len(values) == 1 else f"{median} ({figure(min(values))} to {figure(max(values))})"


def markdown(lines: list[Line], skipped: dict[str, str]) -> str:
    """The table, readable as it is."""
    header = ["row", "what", "ours", "peer", "peer's", "ratio", "target", "met"]
    cells = [header]
    for line in lines:
        target = "–" if line.target is None else f"{'≥' if line.at_least else '≤'} {figure(line.target)}"
        if line.target is not None and line.ratios:
            target += " ×"
        met = {True: "yes", False: "no", None: "–"}[line.met]
        cells.append(
            [line.row, f"{line.what}, {line.unit}", spread(line.ours), line.peer or "–", spread(line.peers),
             f"{spread(line.ratios)}", target, met]
        )  # fmt: skip
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    rows = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    rows.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    notes = [f"- `{line.row}`, {line.what}: {line.note}" for line in lines if line.note]
    notes += [f"- `{row}` was skipped: {why}" for row, why in skipped.items()]
    return "\n".join(rows) + "\n" + ("\n" + "\n".join(notes) + "\n" if notes else "")
