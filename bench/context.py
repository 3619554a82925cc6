"""What the rows of one run share: the options, a work directory, generated inputs and a lake with much in it."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from bench.measure import figure, say
from bench.process import Ingested, Service, verify
from service.cli import main

__all__ = ["BULK", "Context", "Input"]

BULK: dict[str, str] = {}
"""Settings of the service in bulk rows: none, everything is the default."""


@dataclass(frozen=True)
class Input:
    """A generated file."""

    path: Path
    records: int


@dataclass
class Context:
    """One run."""

    options: argparse.Namespace
    work: Path
    growth: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """By form of the files: how many records were stored before each of them, and how many came in a second."""
    _numbers: dict[str, int] = field(default_factory=dict)

    @property
    def records(self) -> int:
        """Of one file."""
        return int(self.options.records)

    @property
    def rounds(self) -> int:
        """How often each side is measured."""
        return int(self.options.rounds)

    def input(self, form: str = "ndjson", first: int = 0, records: int | None = None) -> Input:
        """A file of sample records, seven days of them; made once."""
        count = records or self.records
        path = self.work / "inputs" / f"{first}-{count}.{form}"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            main(["generate", str(count), "--first", str(first), "--format", form, "--output", str(path)])
        return Input(path, count)

    def fresh(self, name: str) -> Path:
        """A directory that is not there yet."""
        self._numbers[name] = self._numbers.get(name, 0) + 1
        return self.work / f"{name}-{self._numbers[name]}"

    def bulk(self, given: Input, *, check: bool = True) -> Ingested:
        """A file into an empty lake through the real inbox, verified afterwards."""
        data = self.fresh("empty")
        with Service(data, **BULK) as service:
            done = service.ingest(given.path, given.path.name, given.records)
        if check:
            verify(data)
        shutil.rmtree(data)
        return done

    @cached_property
    def lake(self) -> Path:
        """A lake with ten times `records` in it, ingested file by file; what each file took goes into `growth`."""
        data = self.work / "known"
        with Service(data, **BULK) as service:
            for number in range(10):
                done = self.grow(service)
                say(f"  {figure(number * self.records)} stored: {figure(done.rate)} records/s")
        return data

    def grow(self, service: Service) -> Ingested:
        """One more file into the big lake."""
        first = int(service.health()["seq"])
        given = self.input(first=first)
        done = service.ingest(given.path, given.path.name, given.records)
        given.path.unlink() if first else None
        self.add_point("NDJSON", first, done)
        return done

    def add_point(self, form: str, before: int, done: Ingested) -> None:
        """One more point of the plot."""
        self.growth.setdefault(form, []).append((before, done.rate))
