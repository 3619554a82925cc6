"""Every state that a crash or a power cut may leave comes back whole; and without any one sync some do not.

`ONCELAKE_TEST_STATES` sets how many different states are tried, `ONCELAKE_TEST_SEED` the seed that a failure prints.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import store.store
from store.files import Disk
from store.store import Store
from store.verify import verify
from tests.support.direct import assert_holds, record_of
from tests.support.disk_model import State, frontiers, materialise, random_state, systematic_states
from tests.support.model import Model
from tests.support.promises import LOGS, History, Sizes, assert_foreign_view, assert_kept, log_bytes
from tests.support.recording import Mark, Op, Recorder, recorded
from tests.support.scenarios import JOURNAL_BYTES, SCENARIOS, Run, copied, made

STATES = int(os.environ.get("ONCELAKE_TEST_STATES", "20000"))
SEED = int(os.environ.get("ONCELAKE_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
COUNTS = ("received", "accepted", "duplicate", "conflict", "rejected")
VERIFIED_EVERY = 2_000
CONTINUED_EVERY = 5
CUT_AGAIN_EVERY = 40
CUTS_OF_A_RECOVERY = 8


SHARES = {"commits": 3, "singles": 3, "a start without a catalog": 0.5}
"""Of the states, where a scenario is cheap to recover from, or dear."""


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory in memory, where there is one."""
    monkeypatch.setattr(store.store, "_JOURNAL_BYTES", JOURNAL_BYTES)
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        yield tmp_path
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
    files: dict[str, tuple[bytes, dict[str, Any]]]
    """What lay in the inbox, and how each file must be answered."""


def record(name: str, memory: Path, lost: Callable[[str], bool] = lambda site: False) -> Recording:
    """Run a scenario to its end under the recorder."""
    scenario = SCENARIOS[name]
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
        history.commits.append(_sizes(root))
        for step in scenario.steps:
            with watching(run.store, history, recorder):
                step(run)
        run.close()
    answers = {name: model.take(records) for name, records in sorted(scenario.files.items())}
    history.finished(root)
    again = Run(root, None, model)
    assert_holds(again.store, model)
    again.close()
    files = {name: ((root / "processed" / name).read_bytes(), answer) for name, answer in answers.items()}
    return Recording(history, model, recorder, Mark(0, 1), files)


@contextlib.contextmanager
def watching(store: Store, history: History, recorder: Recorder) -> Iterator[None]:
    """Each commit is remembered by the sizes of the logs after it; from then on it must not be lost."""
    apply = store._apply

    def applied(*arguments: object) -> None:
        apply(*arguments)  # type: ignore[arg-type]
        history.commits.append(_sizes(store.root))
        recorder.mark(len(history.commits) - 1, len(history.commits))

    store._apply = applied  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del store._apply  # type: ignore[method-assign]


def _sizes(root: Path) -> Sizes:
    return tuple(len(log_bytes(root, log)) for log in LOGS)  # type: ignore[return-value]


def assert_recovers(state: State, recording: Recording, root: Path, number: int) -> None:
    """A start over this state keeps every promise."""
    materialise(state, root.parent)
    history, mark = recording.history, state.mark
    assert_foreign_view(root, history, mark.most)
    run = Run(root, None, Model())
    try:
        commit = assert_kept(run.store, history, mark.answered, mark.most)
        if number % CONTINUED_EVERY == 0:
            seq = history.seq_of(history.commits[commit])
            run.model.stored = recording.model.stored[:seq]
            run.model.by_id = {stored.record[0]: stored for stored in run.model.stored}
            if recording.files:
                assert_files_are_finished(run, recording)
            run.post([record_of(0), record_of(70), record_of(71)])
            if number % (5 * CONTINUED_EVERY) == 0:
                run.store.flush_once()
                assert_holds(run.store, run.model)
    finally:
        run.close()
    if number % VERIFIED_EVERY == 0:
        report = verify(root)
        assert not report.differences, report.differences


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
    while True:
        yield random_state(chance.choice(found), chance)


def states_of_recovery(state: State, recording: Recording, root: Path, chance: random.Random) -> Iterator[State]:
    """States that a second crash leaves, while the start over a first one is under way."""
    materialise(state, root.parent)
    recorder = Recorder(root)
    with recorded(recorder):
        Run(root, Disk(), Model()).close()
    found = frontiers(recorder.base, recorder.ops, state.mark)
    for frontier in chance.sample(found, min(CUTS_OF_A_RECOVERY, len(found))):
        second = random_state(frontier, chance)
        last = [str(op)[:160] for op in recorder.ops[: second.at][-3:]]
        how = f"{state.how}, then in the start after it at {second.at}, {second.how}, after {last}"
        yield replace(second, at=state.at, how=how)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_state_that_a_crash_may_leave_comes_back_whole(name: str, memory: Path) -> None:
    """Systematic and random states of each scenario, and of recoveries from them."""
    print(f"seed {SEED}: ONCELAKE_TEST_SEED={SEED}")
    chance = random.Random(f"{SEED} {name}")
    recording = record(name, memory)
    wanted = STATES * SHARES.get(name, 1) / sum(SHARES.get(each, 1) for each in SCENARIOS)
    root = memory / "state" / "data"
    seen: set[bytes] = set()
    again: list[State] = []
    fruitless = 0
    for state in states_of(recording, chance):
        for each in itertools.chain([state], again):
            if each.key() in seen:
                fruitless += 1
                continue
            fruitless = 0
            seen.add(each.key())
            try:
                assert_recovers(each, recording, root, len(seen))
            except BaseException as error:
                error.add_note(f"seed {SEED}, {name}, state {len(seen)}: after {described(recording, each)}")
                raise
        again = []
        if len(seen) % CUT_AGAIN_EVERY == 0 and not fruitless:
            again = list(states_of_recovery(state, recording, root, chance))
        if len(seen) >= wanted or fruitless > 3_000:
            break
    print(f"{name}: {len(seen)} different states, {len(recording.recorder.ops)} operations")


def described(recording: Recording, state: State) -> str:
    """Where in the recording a state is."""
    ops: list[Op] = recording.recorder.ops[: state.at]
    last = [str(op)[:160] for op in ops[-3:]]
    return f"operation {state.at} of {len(recording.recorder.ops)}, {state.how}; the last ones: {last}; {state.mark}"
