"""The model of the disk sees what it should: without any one sync, or with two steps exchanged, a promise is broken.

A fault campaign that stays green proves nothing until it has been seen red. Here every place of the code that syncs is
made to do nothing, one at a time, and the same states are tried until one does not come back whole.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import store.store
from store.catalog import Catalog
from store.files import Disk
from store.journal import Journal
from store.log import Log
from tests.support.direct import record_of
from tests.support.disk_model import State, frontiers, materialise, random_state, systematic_states
from tests.support.outcome import outcome_of
from tests.support.remembered import cheap_starts
from tests.support.scenarios import JOURNAL_BYTES, SCENARIOS, Run, made
from tests.support.trials import Recording, assert_recovers, in_memory, record

TRIES = 600
"""States of each scenario, at most; most places show within a hundred."""

TRIES_SUPERFLUOUS = 150

plain_glob = Path.glob

SUPERFLUOUS: dict[str, str] = {
    "store/compaction.py:_staged make_directories": "with the folder only an old directory is lost, that was to go",
    "store/links.py:restore make_directory": "links are made again at a start",
    "store/recovery.py:_quarantine make_directory": "nobody was answered for these bytes; they are kept for people",
    "store/recovery.py:_quarantine sync_directory": "as above",
    "store/recovery.py:_quarantine write": "as above",
    "store/remake.py:remade make_directory": "what is lost of a rebuild is made again",
    "store/remake.py:_placed make_directory": "as above",
    "store/remake.py:_placed sync_directory": "as above",
}
"""Places without whose sync every promise holds, and why."""


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory in memory, where there is one."""
    monkeypatch.setattr(store.store, "_JOURNAL_BYTES", JOURNAL_BYTES)
    with in_memory(tmp_path) as directory, cheap_starts():
        yield directory


def likely_states(recording: Recording) -> Iterator[State]:
    """Power cuts first, that keep nothing or little; then all others."""
    found = frontiers(recording.recorder.base, recording.recorder.ops, recording.begin)
    chance = random.Random(1)
    for frontier in found:
        states = systematic_states(frontier)
        for _ in range(4):
            yield next(states)
    for _ in range(TRIES):
        yield random_state(chance.choice(found), chance)


def first_broken(name: str, memory: Path, site: str) -> str | None:
    """How the first state that does not come back whole is broken; None where all do."""
    recording = record(SCENARIOS[name], memory, lambda found: found == site)
    return broken_state(recording, memory, TRIES_SUPERFLUOUS if site in SUPERFLUOUS else TRIES)


def broken_state(recording: Recording, memory: Path, tries: int = TRIES) -> str | None:
    """How the first state of a recording that does not come back whole is broken."""
    seen: set[bytes] = set()
    for number, state in enumerate(likely_states(recording), 1):
        if state.key() in seen or number > tries:
            continue
        seen.add(state.key())
        try:
            assert_recovers(state, recording, memory / "state" / "data", number)
        except Exception as error:
            return f"state {number}, {state.how}: {error!r}"
    return None


def sites(memory: Path) -> dict[str, list[str]]:
    """Every place that syncs, and the scenarios that come past it."""
    found: dict[str, list[str]] = {}
    for name in SCENARIOS:
        for site in record(SCENARIOS[name], memory).recorder.sites:
            found.setdefault(site, []).append(name)
    return found


def test_without_any_one_sync_a_promise_is_broken(memory: Path) -> None:
    """Each place that syncs is made to do nothing, and a state is found that does not come back whole."""
    unseen = []
    for site, names in sorted(sites(memory).items()):
        broken = None
        for name in names:
            broken = first_broken(name, memory, site)
            if broken:
                print(f"{site}: {name}: {broken[:300]}")
                break
        if broken is None:
            unseen.append(site)
    assert sorted(set(unseen) - set(SUPERFLUOUS)) == []


def journal_before_lines(patch: pytest.MonkeyPatch) -> None:
    """The frame is synced before the lines that it covers."""
    waiting: list[Log] = []
    sync_lines, sync_frame = Log.sync, Journal.sync

    def frame_first(journal: Journal) -> None:
        sync_frame(journal)
        while waiting:
            sync_lines(waiting.pop())

    patch.setattr(Log, "sync", lambda log: waiting.append(log))
    patch.setattr(Journal, "sync", frame_first)


def rename_before_sync(patch: pytest.MonkeyPatch) -> None:
    """A file is renamed into place before its bytes are synced."""

    def replace(disk: Disk, path: Path, data: bytes) -> None:
        staged = path.with_name(f".{path.name}.tmp")
        disk.write(staged, data, sync=False)
        disk.rename(staged, path)
        disk.sync_file(path)
        disk.sync_directory(path.parent)

    patch.setattr(Disk, "replace", replace)


def seal_before_names(patch: pytest.MonkeyPatch) -> None:
    """A flush is sealed in the catalog before the directories of its files are synced."""
    waiting: list[Path] = []
    sync, move, seal = Disk.sync_directory, store.store.move_into_place, Catalog.seal

    def move_only(disk: Disk, *arguments: Any) -> None:
        with pytest.MonkeyPatch.context() as within:
            within.setattr(Disk, "sync_directory", lambda disk, path: waiting.append(path))
            move(disk, *arguments)

    def seal_first(catalog: Catalog, *arguments: Any) -> None:
        seal(catalog, *arguments)
        while waiting:
            sync(Disk(), waiting.pop())

    patch.setattr(store.store, "move_into_place", move_only)
    patch.setattr(Catalog, "seal", seal_first)


def intent_before_staging(patch: pytest.MonkeyPatch) -> None:
    """The intent of a flush is in the catalog before the staging directory is synced."""
    sync, intend = Disk.sync_directory, Catalog.intend
    waiting: list[Path] = []

    def later(disk: Disk, path: Path) -> None:
        waiting.append(path) if path.name == "staging" else sync(disk, path)

    def intend_first(catalog: Catalog, *arguments: Any) -> None:
        intend(catalog, *arguments)
        while waiting:
            sync(Disk(), waiting.pop())

    patch.setattr(Disk, "sync_directory", later)
    patch.setattr(Catalog, "intend", intend_first)


SWAPS = {
    journal_before_lines: "commits",
    rename_before_sync: "commits",
    seal_before_names: "a flush",
    intent_before_staging: "a flush",
}


@pytest.mark.parametrize("swap", SWAPS, ids=lambda swap: swap.__name__)
def test_with_two_steps_exchanged_a_promise_is_broken(swap: Callable[..., None], memory: Path) -> None:
    """Each order that the protocol asks for is turned round."""
    with pytest.MonkeyPatch.context() as patch:
        swap(patch)
        recording = record(SCENARIOS[SWAPS[swap]], memory)
    broken = broken_state(recording, memory)
    assert broken is not None
    print(broken[:300])


def test_a_state_is_made_to_the_byte_whatever_was_done_to_the_one_before(memory: Path) -> None:
    """Files that lie there already are left only where they are those of the state, and nobody has written to them."""
    recording = record(SCENARIOS["retention"], memory)
    chance = random.Random(1)
    parent = memory / "state"
    for number, state in enumerate(itertools.islice(likely_states(recording), 400)):
        materialise(state, parent)
        assert contents(parent) == {
            **state.entries,
            **{link: state.entries[first] for link, first in state.links.items()},
        }
        inodes = {path: (parent / path[1:]).stat().st_ino for path in (*state.entries, *state.links)}
        assert all(inodes[link] == inodes[first] for link, first in state.links.items())
        assert len({inodes[path] for path in state.entries}) == len(state.entries)
        files = [path for path in parent.rglob("*") if path.is_file()]
        for path in chance.sample(files, min(4, len(files))):
            data = path.read_bytes()
            match (number + len(data)) % 5:
                case 0 if data:
                    with path.open("r+b") as file:
                        file.write(bytes([data[0] ^ 1]))
                case 1:
                    os.truncate(path, len(data) // 2)
                case 2:
                    path.with_name("another").write_bytes(data[::-1])
                    path.with_name("another").rename(path)
                case 3:
                    os.link(path, path.with_name(f"{path.name}.link"))
                case _:
                    path.unlink()


def contents(parent: Path) -> dict[str, bytes | None]:
    """By path below it what every file holds; None of directories."""
    return {f"/{path.relative_to(parent)}": None if path.is_dir() else path.read_bytes() for path in parent.rglob("*")}


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="nothing stands in for it there")
def test_folders_are_searched_as_by_pathlib(memory: Path, tmp_path: Path) -> None:
    """What stands in for `Path.glob` in a cheap start finds the same."""
    for name in (
        "a.jsonl",
        ".b.jsonl",
        "c.jsonl.tmp",
        "records/x/d.parquet",
        "records/e.parquet",
        "records/x/y/f.parquet",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "records" / "g.parquet").mkdir()
    patterns = (
        "*.jsonl",
        "*",
        "**/*.parquet",
        "records/**/*.parquet",
        "none/**/*.parquet",
        "records/*.parquet",
        "*/*/*.p*",
    )
    for folder in (tmp_path, tmp_path / "records", tmp_path / "none", tmp_path / "a.jsonl"):
        assert Path.glob is not plain_glob
        for pattern in patterns:
            assert sorted(folder.glob(pattern)) == sorted(plain_glob(folder, pattern)), (folder, pattern)


def test_an_outcome_is_another_with_any_byte_changed(memory: Path) -> None:
    """Whatever differs between two stores is seen: a byte of any file, a row of the catalog, what is in memory."""
    root = memory / "data"
    run = Run(root, None, made(SCENARIOS["retention"], root))
    before = outcome_of(run.store)
    assert outcome_of(run.store) == before
    apart = ("lock", "catalog.sqlite")
    for path in (path for path in root.rglob("*") if path.is_file() and not path.name.startswith(apart)):
        data = path.read_bytes()
        with path.open("r+b") as file:
            file.write(bytes([data[0] ^ 1]))
            file.flush()
            assert outcome_of(run.store) != before, path
            file.seek(0)
            file.write(data[:1])
    assert outcome_of(run.store) == before
    for change in (
        lambda: run.post([record_of(90)]),
        lambda: run.post([record_of(1, unit="USD")]),
        run.store.flush_once,
    ):
        change()
        assert outcome_of(run.store) != before
        before = outcome_of(run.store)
    run.store._catalog._db.execute("UPDATE meta SET value = value || '0' WHERE key = 'digest'")
    assert outcome_of(run.store) != before
    before = outcome_of(run.store)
    run.store._view = replace(run.store._view, flushed=run.store.flushed - 1)
    assert outcome_of(run.store) != before
    run.close()
