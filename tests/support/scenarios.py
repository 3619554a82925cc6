"""Short histories of a store that faults are put into: steps one after another, in one thread, beside the model."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from ingest.decode import Limits
from ingest.inbox import Inbox, InboxSettings
from ingest.record import Rules as RecordRules
from store.errors import StoppingError
from store.files import Disk
from store.recovery import LOGS
from store.retention import Retention
from tests.support.direct import START_US, Direct, open_store, record_of
from tests.support.faults import Crash
from tests.support.model import Canonical, Model, canonical

__all__ = ["SCENARIOS", "Run", "Scenario", "Step", "copied", "drawn", "made"]

JOURNAL_BYTES = 3_000
"""For `store.store._JOURNAL_BYTES`, so that short histories fold their journal."""

Step = Callable[["Run"], None]


class Run:
    """A store beside its model; `unanswered` is the batch whose answer a crash took."""

    def __init__(self, root: Path, disk: Disk | None, model: Model) -> None:
        self.model = model
        self.unanswered: list[Canonical | None] = []
        self.store = open_store(root, disk)
        self.is_open = True

    @cached_property
    def committer(self) -> Direct:
        """Made where it is asked for: most stores of a campaign are only started."""
        return Direct(self.store)

    def post(self, records: list[Canonical | None]) -> None:
        """One request; what the model takes, too."""
        self.unanswered = records
        try:
            answer = self.committer.take(records)
        except StoppingError as error:
            raise Crash(str(error)) from error
        expected = self.model.take(records)
        assert answer == expected
        self.unanswered = []

    def scan(self) -> None:
        """One scan of the inbox, and the commit that forgets what is finished."""
        settings = InboxSettings(self.store.root, settle_s=0.0)
        inbox = Inbox(self.store.disk, self.committer, RecordRules(), Limits(chunk_rows=4), settings)
        inbox.run_once()
        self.committer.drain()

    def close(self) -> None:
        """Stop, once."""
        if self.is_open:
            self.is_open = False
            if "committer" in vars(self):
                self.committer.stop()
            self.store.close()


@dataclass(frozen=True)
class Scenario:
    """Steps that make a data directory, and the steps that are watched. `files` lie in the inbox before these."""

    before: list[Step]
    steps: list[Step]
    files: dict[str, list[Canonical | None]] = field(default_factory=dict)
    harm: Callable[[Path], None] | None = None
    """What is done to the directory in between, by somebody else."""


def post(first: int, last: int, *more: Canonical | None) -> Step:
    """A request with these records of `record_of`, and then these."""
    return lambda run: run.post([*(record_of(number) for number in range(first, last)), *more])


def flush(run: Run) -> None:
    """One flush."""
    run.store.flush_once()


def merge(run: Run) -> None:
    """All merges that are due."""
    while run.store.tiers.merge_once():
        pass


def compact(run: Run) -> None:
    """All compactions that are due, and old directories are removed."""
    while run.store.compaction.run_once():
        pass


def one_day(first: int, last: int) -> Step:
    """A request with records of one day."""
    return lambda run: run.post([record_of(number, time=START_US) for number in range(first, last)])


def follow(run: Run) -> None:
    """`committed.json` follows."""
    run.store.write_committed()


def retain(run: Run) -> None:
    """All that is flushed, and in a segment that is closed, is old enough to go."""
    store = run.store
    store.settings = replace(store.settings, retention_us=dict.fromkeys(LOGS, 1))
    retention = Retention(store, run.committer.raise_floors, lambda: 1 << 62)
    retention.run_once()
    run.committer.drain()
    retention.run_once()


def scan(run: Run) -> None:
    """The inbox."""
    run.scan()


def reopen(run: Run) -> None:
    """Stop and start."""
    disk = run.store.disk
    root = run.store.root
    run.close()
    run.store = open_store(root, disk)
    run.committer = Direct(run.store)
    run.is_open = True


def _without_catalog(root: Path) -> None:
    for path in (root / "internal").glob("catalog.sqlite*"):
        path.unlink()


def _with_tails(root: Path) -> None:
    for log in ("outbox/notifications", "outbox/alerts", "rejected", "internal/journal"):
        for path in sorted((root / log).glob("*l"))[-1:]:
            with path.open("ab") as file:
                file.write(b'{"seq":')


CONFLICT = record_of(1, unit="USD")
MERGING: list[Step] = [post(0, 3), flush, post(3, 5), flush, post(5, 7), flush, post(7, 9), flush]
SCENARIOS: dict[str, Scenario] = {
    "a new data directory": Scenario([], [post(0, 3), flush, post(3, 4)]),
    "commits": Scenario([post(0, 4, None)], [post(3, 9, CONFLICT, None), follow, post(9, 11), post(20, 32)]),
    "singles": Scenario([post(0, 2)], [post(2, 3), follow, post(3, 4), post(1, 2, CONFLICT), post(4, 5)]),
    "a flush": Scenario([post(0, 9)], [flush, post(9, 11)]),
    "a flush beside commits": Scenario(
        [post(0, 4), flush, post(4, 9)], [post(9, 12), flush, post(12, 13), follow, flush]
    ),
    "a merge": Scenario(MERGING, [merge, post(9, 10)]),
    "a compaction": Scenario([one_day(0, 3), flush, one_day(3, 5), flush], [compact, one_day(5, 6), compact]),
    "compactions beside flushes": Scenario(
        [one_day(0, 2), flush, one_day(2, 4)], [flush, one_day(4, 6), compact, flush, compact]
    ),
    "files": Scenario(
        [post(0, 4)],
        [scan, flush, scan],
        {"a.ndjson": [*(record_of(number) for number in range(2, 12)), None], "b.ndjson": [record_of(11)]},
    ),
    "retention": Scenario(
        [post(0, 7, None), post(7, 9), flush],
        [retain, post(9, 16, None), follow, flush, post(16, 17), retain, post(17, 18), retain],
    ),
    "a start after a kill": Scenario([*MERGING, post(9, 12)], [post(12, 13), follow], harm=_with_tails),
    "a start without a catalog": Scenario(
        [post(0, 2), flush, post(2, 4), flush, post(4, 6)], [post(6, 7)], harm=_without_catalog
    ),
    "a start within": Scenario([post(0, 4), flush], [post(4, 7), reopen, flush, post(7, 8)]),
}


def drawn(chance: random.Random) -> Scenario:
    """A history of steps in any order; beside commits, flushes and compactions most often."""
    next_number = chance.randrange(1_000)

    def request() -> Step:
        nonlocal next_number
        first = max(next_number - chance.choice((0, 0, 0, 1, 3)), 0)
        last = next_number = next_number + chance.choice((1, 1, 2, 4, 9))
        more = chance.choice(((), (), (), (None,), (record_of(first, unit="USD"),)))
        return one_day(first, last) if chance.random() < 0.4 else post(first, last, *more)

    def step(among: list[Step]) -> Step:
        return request() if chance.random() < 0.5 else chance.choice(among)

    before = [request(), *(step([flush, flush, merge]) for _ in range(chance.randrange(6)))]
    among = [flush, flush, flush, compact, compact, merge, follow, retain, reopen]
    return Scenario(before, [step(among) for _ in range(chance.randrange(3, 8))])


def made(scenario: Scenario, root: Path) -> Model:
    """Make the data directory that the scenario begins with; what it holds."""
    model = Model()
    if scenario.before or scenario.files:
        run = Run(root, None, model)
        for step in scenario.before:
            step(run)
        run.close()
    for name, records in scenario.files.items():
        (root / "inbox").mkdir(exist_ok=True)
        lines = ["{broken" if record is None else json.dumps(dict(canonical(record))) for record in records]
        (root / "inbox" / name).write_text("".join(f"{line}\n" for line in lines))
    if scenario.harm:
        scenario.harm(root)
    return model


def copied(model: Model) -> Model:
    """A model that can go on by itself."""
    return Model(model.threshold, list(model.stored), dict(model.by_id))
