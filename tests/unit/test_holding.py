"""Readers of other processes: what they hold open stays as it is, whatever a compaction takes away meanwhile."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest

import store.verify
from store.engine import Engine
from store.filters import Filters
from store.holding import HANDLES, Holding
from store.queries import totals
from store.reading import read_snapshot
from store.store import Store
from store.verify import verify
from tests.support.direct import START_US, Direct, open_store, record_of


def flushed_twice(root: Path) -> Store:
    """A store with two files of one day, which are due to be compacted."""
    opened = open_store(root)
    committer = Direct(opened)
    for number in (1, 2):
        committer.take([record_of(number, time=START_US)])
        opened.flush_once()
    return opened


def compact(opened: Store) -> None:
    """Exchange, and remove what was exchanged."""
    assert opened.compaction.run_once() == 1
    assert opened.compaction.run_once() == 0


def test_a_snapshot_of_another_process_answers_after_a_compaction(tmp_path: Path) -> None:
    """Its files have no name any more, and are read."""
    opened = flushed_twice(tmp_path / "data")
    with Holding(tmp_path / "data") as holding:
        snapshot = read_snapshot(tmp_path / "data", holding)
        compact(opened)
        assert not any((tmp_path / "data" / file.name).exists() for file in snapshot.files)
        engine = Engine(tmp_path / "data", tmp_path, also=HANDLES)
        found = totals(engine, snapshot, Filters(start_us=1)).to_pylist()
        engine.close()
        held = [file.path for file in snapshot.files]
    assert sum(row["count"] for row in found) == 2
    assert not any(path.exists() for path in held)
    opened.close()


def test_a_verification_goes_on_over_a_compaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads what it surveyed, once."""
    opened = flushed_twice(tmp_path / "data")
    take_survey = store.verify.take_survey
    surveys = []

    def surveyed(*arguments: Any) -> Any:
        surveys.append(take_survey(*arguments))
        compact(opened)
        return surveys[-1]

    monkeypatch.setattr(store.verify, "take_survey", surveyed)
    report = verify(tmp_path / "data")
    assert report.differences == []
    assert report.checked["records"] == 2
    assert len(surveys) == 1
    opened.close()


def test_where_there_may_be_few_handles_files_are_read_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is raised as far as it goes; beyond it nothing is held."""
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda what: (100, 257))
    monkeypatch.setattr(resource, "setrlimit", lambda what, found: limits.append(found))
    with Holding(tmp_path) as holding:
        holding.hold(["a", "b"])
        assert holding.path("a").parent == HANDLES
        assert holding.path("a").read_bytes() == b"a"
        assert holding.path("b") == tmp_path / "b"
    assert limits == [(257, 257)]


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    """So that a fresh snapshot is taken."""
    with Holding(tmp_path) as holding, pytest.raises(FileNotFoundError):
        holding.hold(["gone"])
