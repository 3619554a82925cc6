"""A crash, EIO, ENOSPC or a short write, before and after every call of the disk: nothing is lost, nothing comes twice.

All of (call, fault) are tried of commits, singles, a flush and a compaction. `ONCELAKE_TEST_FAILPOINTS` sets the
share of the other scenarios that is tried, drawn by `ONCELAKE_TEST_SEED`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import store.store
from store.errors import OncelakeError
from store.files import Disk
from tests.support import scenarios
from tests.support.direct import START_US, Direct, assert_holds
from tests.support.failpoints import FAULTS, Fault, FaultyOs, faulty
from tests.support.faults import Crash
from tests.support.model import Canonical, Model
from tests.support.outcome import outcome_of
from tests.support.scenarios import JOURNAL_BYTES, SCENARIOS, Run, Scenario, copied, made
from tests.support.trials import in_memory

SHARE = float(os.environ.get("ONCELAKE_TEST_FAILPOINTS", "0.06"))
ALWAYS = {"commits", "singles", "a flush", "a compaction"}
"""Scenarios of which every (call, fault) is tried, whatever the share."""

SEED = int(os.environ.get("ONCELAKE_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory in memory, where there is one. Time stands still, so that what ends alike is alike to the byte."""
    monkeypatch.setattr(store.store, "_JOURNAL_BYTES", JOURNAL_BYTES)
    monkeypatch.setattr(scenarios, "Direct", partial(Direct, now_us=lambda: START_US))
    with in_memory(tmp_path) as directory:
        yield directory


class Trial:
    """A scenario that goes on after its fault: tried again where it was refused, started again where it stopped."""

    def __init__(self, root: Path, scenario: Scenario, model: Model, system: FaultyOs) -> None:
        self.root = root
        self.scenario = scenario
        self.model = model
        self.system = system
        self.run: Run | None = None
        self.unanswered: list[Canonical | None] = []

    def go(self) -> Run:
        """All steps, with what a supervisor and a client would do about faults."""
        for step in self.scenario.steps:
            for attempt in range(6):
                try:
                    step(self.started())
                    break
                except (Crash, OSError, OncelakeError):
                    if attempt == 1:
                        self.system.heal()  # a client tries again, then somebody makes room
                    if attempt or self.has_stopped():
                        self.stop()
            else:
                raise AssertionError("the step does not succeed, though nothing fails any more")
        self.system.heal()
        self.stop()
        return self.started()

    def has_stopped(self) -> bool:
        """Whether the process would be gone, or would have to be."""
        return self.run is None or self.system._dead or self.run.store.failure is not None

    def started(self) -> Run:
        """The running store, or a start of it."""
        if self.run is None:
            if self.system._dead:
                self.system.heal()
            self.run = Run(self.root, Disk(), self.model)
            if self.run.store.seq > len(self.model.stored) and self.unanswered:
                self.model.take(self.unanswered)
            self.unanswered = []
        return self.run

    def stop(self) -> None:
        """The process ends, however."""
        if self.run is not None:
            self.unanswered = self.run.unanswered
            healed, self.system._dead = self.system._dead, False
            self.run.close()
            self.system._dead = healed
            self.run = None


def try_fault(
    name: str, base: Path, root: Path, model: Model, at: int | None, fault: Fault, held: set[bytes]
) -> list[str]:
    """One fault, and everything after it; the calls that were made.

    `held` are the ends that were looked at: equal stores beside equal models answer alike, and most faults end alike.
    """
    scenario = SCENARIOS[name]
    shutil.rmtree(root.parent, ignore_errors=True)
    root.parent.mkdir()
    if base.exists():
        shutil.copytree(base, root)
    system = FaultyOs(root, at, fault)
    with faulty(system):
        run = Trial(root, scenario, copied(model), system).go()
        try:
            if scenario.files:
                assert_files_are_done(run)
            end = outcome_of(run.store) + repr(run.model.stored).encode()
            if end not in held:
                assert_holds(run.store, run.model)
                held.add(end)
        finally:
            run.close()
    return system.calls


def assert_files_are_done(run: Run) -> None:
    """Every file has its receipt; in which order they came is left to the store."""
    run.scan()
    root = run.store.root
    assert not [path for path in (root / "inbox").rglob("*") if path.is_file()]
    assert sorted(path.name for path in (root / "processed").iterdir()) == [
        "a.ndjson", "a.ndjson.receipt.json", "b.ndjson", "b.ndjson.receipt.json",
    ]  # fmt: skip
    files = SCENARIOS["files"].files
    records = {record[0]: record for held in files.values() for record in held if record is not None}
    lines = [path.read_text().splitlines() for path in sorted((root / "outbox/notifications").glob("*.jsonl"))]
    ids = [json.loads(line)["record"]["recordId"] for held in lines for line in held]
    run.model.take([records[record_id] for record_id in ids[len(run.model.stored) :]])
    assert set(records) <= set(run.model.by_id)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_fault_at_any_call_loses_nothing_and_repeats_nothing(name: str, memory: Path) -> None:
    """Refused work is tried again, a store that stopped is started again, and in the end all is there once."""
    print(f"seed {SEED}: ONCELAKE_TEST_SEED={SEED}")
    chance = random.Random(f"{SEED} {name}")
    base, root = memory / "base" / "data", memory / "trial" / "data"
    base.parent.mkdir()
    model = made(SCENARIOS[name], base)
    held: set[bytes] = set()
    calls = try_fault(name, base, root, model, None, FAULTS[0], held)
    cases = [
        (at, fault)
        for at in range(1, len(calls) + 1)
        for fault in FAULTS
        if not fault.short or calls[at - 1] == "write"
    ]
    chosen = cases if SHARE >= 1 or name in ALWAYS else chance.sample(cases, max(round(SHARE * len(cases)), 1))
    for at, fault in chosen:
        try:
            try_fault(name, base, root, model, at, fault, held)
        except BaseException as error:
            error.add_note(f"seed {SEED}, {name}: {fault.name} at call {at} of {len(calls)}, {calls[at - 1]}")
            raise
    print(f"{name}: {len(chosen)} of {len(cases)} faults at {len(calls)} calls, {len(held)} different ends")
