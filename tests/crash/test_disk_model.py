"""Every state that a crash or a power cut may leave comes back whole.

`ONCELAKE_TEST_STATES` sets how many different states are tried, `ONCELAKE_TEST_SEED` the seed that a failure prints.
The histories of `tests.support.scenarios` have some ten thousand different states each, and the first thousands tell
most: beyond 50,000 states there are further histories, drawn by the seed.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import store.store
from store.files import Disk
from tests.support.disk_model import State, frontiers, materialise, random_state
from tests.support.model import Model
from tests.support.recording import Op, Recorder, recorded
from tests.support.remembered import cheap_starts
from tests.support.scenarios import JOURNAL_BYTES, SCENARIOS, Run, drawn
from tests.support.trials import Recording, assert_recovers, in_memory, record, states_of

STATES = int(os.environ.get("ONCELAKE_TEST_STATES", "20000"))
SEED = int(os.environ.get("ONCELAKE_TEST_SEED", "20261123"))
CUT_AGAIN_EVERY = 40
CUTS_OF_A_RECOVERY = 8

NAMED = min(STATES, 50_000)
DRAWN_STATES = 4_000
DRAWN = [f"drawn {number}" for number in range(-(-(STATES - NAMED) // DRAWN_STATES))]

SHARES = {"commits": 3, "singles": 3, "a start without a catalog": 0.5}
"""Of the states, where a scenario is cheap to recover from, or dear."""


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory in memory, where there is one."""
    monkeypatch.setattr(store.store, "_JOURNAL_BYTES", JOURNAL_BYTES)
    with in_memory(tmp_path) as directory, cheap_starts():
        yield directory


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


@pytest.mark.parametrize("name", [*SCENARIOS, *DRAWN])
def test_every_state_that_a_crash_may_leave_comes_back_whole(name: str, memory: Path) -> None:
    """Systematic and random states of each scenario, and of recoveries from them."""
    print(f"seed {SEED}: ONCELAKE_TEST_SEED={SEED}")
    chance = random.Random(f"{SEED} {name}")
    recording = record(SCENARIOS[name] if name in SCENARIOS else drawn(chance), memory)
    share = SHARES.get(name, 1) / sum(SHARES.get(each, 1) for each in SCENARIOS)
    wanted = NAMED * share if name in SCENARIOS else DRAWN_STATES
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
    ops, outcomes = len(recording.recorder.ops), len(recording.continued)
    print(f"{name}: {len(seen)} different states, {ops} operations, {outcomes} outcomes")


def described(recording: Recording, state: State) -> str:
    """Where in the recording a state is."""
    ops: list[Op] = recording.recorder.ops[: state.at]
    last = [str(op)[:160] for op in ops[-3:]]
    return f"operation {state.at} of {len(recording.recorder.ops)}, {state.how}; the last ones: {last}; {state.mark}"
