"""A scenario run under the recorder, and the trial of one state of it: a start that must keep every promise."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import store.recovery
from store.files import Disk
from store.store import Store
from store.verify import verify
from tests.support.direct import assert_holds, record_of
from tests.support.disk_model import State, frontiers, materialise, random_state, systematic_states
from tests.support.model import Model
from tests.support.outcome import outcome_of
from tests.support.promises import FEEDS, History, assert_feed_seen, assert_kept, assert_records_seen
from tests.support.recording import Mark, Recorder, recorded
from tests.support.scenarios import Run, Scenario, copied, made

__all__ = ["Recording", "assert_recovers", "in_memory", "record", "states_of"]

COUNTS = ("received", "accepted", "duplicate", "conflict", "rejected")
VERIFIED_EVERY = 2_000
CHECKED_AGAIN_EVERY = 200
"""An outcome that is known already is checked in full, and gone on with, once in so many states all the same."""

SEEN: dict[str, Callable[[Path, History, int], None]] = {
    "records": assert_records_seen,
    **{
        f"outbox/{feed}": lambda root, history, most, feed=feed: assert_feed_seen(root, feed, history, most)
        for feed in FEEDS
    },
}
"""What others may see before the next start, by the folder that it depends on."""


@contextlib.contextmanager
def in_memory(otherwise: Path) -> Iterator[Path]:
    """A directory in memory, where there is one."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        yield otherwise
        return
    with tempfile.TemporaryDirectory(prefix="oncelake-", dir=shared) as directory:
        yield Path(directory)


@dataclass
class Recording:
    """One run of a scenario: what it promised, and all that it did to the disk."""

    history: History
    model: Model
    recorder: Recorder
    begin: Mark
    is_sound: bool
    """Whether the scenario begins with a catalog that fits, so that no crash may cost a rebuild."""
    files: dict[str, tuple[bytes, dict[str, Any]]]
    """What lay in the inbox, and how each file must be answered."""
    views: set[tuple[str, bytes, int]] = field(default_factory=set)
    """What others could see, and the commits that there could be, where that was right."""
    kept: set[tuple[bytes, int, int]] = field(default_factory=set)
    """Outcomes of starts, and the commits that were allowed, where every promise was kept."""
    continued: set[bytes] = field(default_factory=set)
    """Outcomes that were gone on with."""


def record(scenario: Scenario, memory: Path, lost: Callable[[str], bool] = lambda site: False) -> Recording:
    """Run a scenario to its end under the recorder."""
    root = memory / "recorded" / "data"
    shutil.rmtree(root.parent, ignore_errors=True)
    root.parent.mkdir()
    model = made(scenario, root)
    begin = Run(root, None, copied(model)) if scenario.harm is None and scenario.before else None
    if begin:
        begin.close()
    history = History()
    recorder = Recorder(root, lost)
    with recorded(recorder):
        run = Run(root, Disk(), model)
        history.committed(root, run.store.state.kept)
        for step in scenario.steps:
            with watching(run.store, history, recorder):
                step(run)
        run.close()
    answers = {name: model.take(records) for name, records in sorted(scenario.files.items())}
    history.finished()
    again = Run(root, None, model)
    assert_holds(again.store, model)
    again.close()
    files = {name: ((root / "processed" / name).read_bytes(), answer) for name, answer in answers.items()}
    return Recording(history, model, recorder, Mark(0, 1), bool(scenario.before) and not scenario.harm, files)


@contextlib.contextmanager
def watching(watched: Store, history: History, recorder: Recorder) -> Iterator[None]:
    """Each commit is remembered by the sizes of the logs after it; from then on it must not be lost."""
    apply = watched._apply

    def applied(*arguments: object) -> None:
        apply(*arguments)  # type: ignore[arg-type]
        history.committed(watched.root, watched.state.kept)
        recorder.mark(len(history.commits) - 1, len(history.commits))

    watched._apply = applied  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del watched._apply  # type: ignore[method-assign]


@contextlib.contextmanager
def rebuilds() -> Iterator[list[Path]]:
    """The data directories of which something derived is made anew meanwhile."""
    found: list[Path] = []
    make = store.recovery.remade

    def remade(disk: Disk, root: Path, *arguments: Any) -> Any:
        found.append(root)
        return make(disk, root, *arguments)

    store.recovery.remade = remade
    try:
        yield found
    finally:
        store.recovery.remade = make


def assert_recovers(state: State, recording: Recording, root: Path, number: int) -> None:
    """A start over this state keeps every promise.

    Every state is started. What the start leaves is checked, and gone on with, once for each different outcome
    (`tests.support.outcome`) and the commits that were allowed, because equal stores answer alike.
    """
    materialise(state, root.parent)
    history, mark = recording.history, state.mark
    for folder, assert_seen in SEEN.items():
        view = (folder, state.part(folder), mark.most)
        if view not in recording.views:
            assert_seen(root, history, mark.most)
            recording.views.add(view)
    with rebuilds() as made_anew:
        run = Run(root, None, Model())
    is_again = number % CHECKED_AGAIN_EVERY == 0
    try:
        if recording.is_sound and "behind" not in state.how and "lost" not in state.how:
            assert not made_anew, "a crash alone has cost what is derived"
        outcome = outcome_of(run.store)
        known = (outcome, mark.answered, mark.most)
        if is_again or known not in recording.kept:
            commit = assert_kept(run.store, history, mark.answered, mark.most)
            recording.kept.add(known)
            if is_again or outcome not in recording.continued:
                assert_goes_on(run, recording, commit)
                recording.continued.add(outcome)
    finally:
        run.close()
    if number % VERIFIED_EVERY == 0:
        report = verify(root)
        assert not report.differences, report.differences


def assert_goes_on(run: Run, recording: Recording, commit: int) -> None:
    """Files are finished, records are taken, found again as duplicates, flushed, and all of it is right then."""
    history = recording.history
    seq = history.seq_of(history.commits[commit])
    run.model.stored = recording.model.stored[:seq]
    run.model.by_id = {stored.record[0]: stored for stored in run.model.stored}
    if recording.files:
        assert_files_are_finished(run, recording)
    run.post([record_of(0), record_of(70), record_of(71)])
    run.store.flush_once()
    assert_holds(run.store, run.model)


def assert_files_are_finished(run: Run, recording: Recording) -> None:
    """Files go on where their last commit ended, are moved, and have receipts that count as if nothing had happened."""
    for _ in range(3):
        run.scan()
    run.model.stored, run.model.by_id = copied(recording.model).stored, copied(recording.model).by_id
    assert run.store.seq == len(run.model.stored)
    root = run.store.root
    assert not [path for path in (root / "inbox").rglob("*") if path.is_file()]
    for name, (data, answer) in recording.files.items():
        assert (root / "processed" / name).read_bytes() == data
        receipt = json.loads((root / "processed" / f"{name}.receipt.json").read_bytes())
        assert {key: receipt[key] for key in COUNTS} == {key: answer[key] for key in COUNTS}, name
    assert len(list((root / "processed").iterdir())) == 2 * len(recording.files)


def states_of(recording: Recording, chance: random.Random) -> Iterator[State]:
    """All systematic states, then random ones for ever."""
    found = frontiers(recording.recorder.base, recording.recorder.ops, recording.begin)
    for frontier in found:
        yield from systematic_states(frontier)
    pending = [frontier for frontier in found if frontier.changes or frontier.data]  # of the others these were all
    while pending:
        yield random_state(chance.choice(pending), chance)
