"""Whatever a crash or a power cut leaves behind, a start makes whole: nothing answered is lost, nothing comes twice."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

import store.store
from store.errors import DiskFullError, StoppingError
from tests.support.direct import START_US, Direct, assert_holds, open_store, record_of
from tests.support.faults import Crash, FaultyDisk
from tests.support.model import Canonical, Model

T = TypeVar("T")
Step = Callable[["Run"], None]


class Run:
    """A store beside its model; `unanswered` is the batch whose answer a crash took."""

    def __init__(self, root: Path, disk: FaultyDisk | None, model: Model) -> None:
        self.model = model
        self.unanswered: list[Canonical | None] = []
        self.store = open_store(root, disk)
        self.committer = Direct(self.store)

    def post(self, records: list[Canonical | None]) -> None:
        self.unanswered = records
        try:
            self.committer.take(records)
        except StoppingError as error:
            raise Crash(str(error)) from error
        self.model.take(records)
        self.unanswered = []

    def flush(self) -> None:
        self.store.flush_once()

    def merge(self) -> None:
        while self.store.merge_once():
            pass

    def close(self) -> None:
        self.committer.stop()
        self.store.close()


def post(first: int, last: int, *more: Canonical | None) -> Step:
    return lambda run: run.post([*(record_of(number) for number in range(first, last)), *more])


def flush(run: Run) -> None:
    run.flush()


def merge(run: Run) -> None:
    run.merge()


def compact(run: Run) -> None:
    while run.store.compaction.run_once():
        pass


def one_day(first: int, last: int) -> Step:
    return lambda run: run.post([record_of(number, time=START_US) for number in range(first, last)])


def follow(run: Run) -> None:
    run.store.write_committed()


CONFLICT = record_of(1, unit="USD")
SCENARIOS: dict[str, tuple[list[Step], list[Step]]] = {
    "a new data directory": ([], [post(0, 3)]),
    "commits": ([post(0, 4, None)], [post(3, 9, CONFLICT, None), follow, post(9, 11), post(20, 32)]),
    "a flush": ([post(0, 9)], [flush, post(9, 11)]),
    "a flush beside commits": ([post(0, 4), flush, post(4, 9)], [post(9, 12), flush, post(12, 13), follow]),
    "a compaction": ([one_day(0, 3), flush, one_day(3, 5), flush], [compact, one_day(5, 6), compact]),
    "compactions beside flushes": (
        [one_day(0, 2), flush, one_day(2, 4)],
        [flush, one_day(4, 6), compact, flush, compact],
    ),
    "a merge": ([post(0, 3), flush, post(3, 5), flush, post(5, 7), flush, post(7, 9), flush], [merge, post(9, 10)]),
}


def model_after(steps: list[Step], root: Path) -> Model:
    run = Run(root, None, Model())
    for step in steps:
        step(run)
    run.close()
    return run.model


def copied(model: Model) -> Model:
    return Model(model.threshold, list(model.stored), dict(model.by_id))


def run_into(at: int | None, base: Path, root: Path, model: Model, steps: list[Step]) -> tuple[Run | None, FaultyDisk]:
    root.parent.mkdir()
    if base.exists():
        shutil.copytree(base, root)
    disk = FaultyDisk(root, at)
    run = None
    try:
        run = Run(root, disk, copied(model))
        for step in steps:
            step(run)
    except Crash:
        assert at is not None
    return run, disk


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_crash_at_any_call_loses_nothing_answered_and_repeats_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash before each call that changes the disk, then a start, then the unanswered batch again."""
    monkeypatch.setattr(store.store, "_JOURNAL_BYTES", 3_000)
    before, steps = SCENARIOS[name]
    base = tmp_path / "base"
    model = model_after(before, base) if before else Model()
    complete, disk = run_into(None, base, tmp_path / "complete" / "data", model, steps)
    assert complete is not None
    complete.close()
    calls = len(disk.calls)
    for at in range(1, calls + 1):
        root = tmp_path / str(at) / "data"
        run, disk = run_into(at, base, root, model, steps)
        killed, unpowered = tmp_path / str(at) / "killed", tmp_path / str(at) / "unpowered"
        if root.exists():
            shutil.copytree(root, killed)
        disk.survivors(unpowered)
        if run:
            run.close()
        disk.close()
        for left in (killed, unpowered):
            expected, unanswered = (copied(run.model), run.unanswered) if run else (copied(model), [])
            try:
                assert_comes_back(left, expected, unanswered, thoroughly=at % 5 == 0)
            except BaseException as error:
                error.add_note(f"{left.name} before call {at} of {calls}: {disk.calls[-1]}")
                raise
        shutil.rmtree(tmp_path / str(at))


def assert_comes_back(root: Path, model: Model, unanswered: list[Canonical | None], *, thoroughly: bool) -> None:
    """A start finds what was answered, and of the unanswered batch all or nothing; then all of it is there once."""
    run = Run(root, None, model)
    try:
        if run.store.seq > len(model.stored):
            model.take(unanswered)
        assert_holds(run.store, model)
        run.post(unanswered)
        if thoroughly:
            run.flush()
            assert_holds(run.store, model)
    finally:
        run.close()


@pytest.mark.parametrize(("name", "times"), [*((name, 1) for name in SCENARIOS), ("commits", 4)])
def test_a_full_disk_at_any_call_is_an_answer_and_the_same_can_be_tried_again(
    name: str, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No room at each call: an error that nothing was stored, then success; only a failed sync needs a restart."""
    monkeypatch.setattr(store.store, "_JOURNAL_BYTES", 3_000)
    before, steps = SCENARIOS[name]
    base = tmp_path / "base"
    model = model_after(before, base) if before else Model()
    complete, disk = run_into(None, base, tmp_path / "complete" / "data", model, steps)
    assert complete is not None
    complete.close()
    disk.close()
    for at in range(1, len(disk.calls) + 1):
        root = tmp_path / str(at) / "data"
        root.parent.mkdir()
        if base.exists():
            shutil.copytree(base, root)
        disk = FaultyDisk(root, at, errno.ENOSPC, times)
        run = retried(Run, root, disk, copied(model))
        restarted = False
        try:
            for step in steps:
                try:
                    retried(step, run)
                except (Crash, OSError) as error:
                    assert "sync" in disk.calls[at - 1] or times > 1, error
                    assert not restarted
                    restarted = True
                    expected, unanswered = run.model, run.unanswered
                    run.close()
                    disk.at = None
                    run = Run(root, disk, expected)
                    if run.store.seq > len(expected.stored):
                        expected.take(unanswered)
                    step(run)
            assert_holds(run.store, run.model)
            run.close()
            run = Run(root, None, run.model)
            assert_holds(run.store, run.model)
        except BaseException as error:
            error.add_note(f"no room at call {at} of {len(disk.calls)}: {disk.calls[at - 1]}")
            raise
        finally:
            run.close()
            disk.close()
        shutil.rmtree(root.parent)


def retried(action: Callable[..., T], *arguments: object) -> T:
    """Try again while there is no room."""
    for _ in range(20):
        try:
            return action(*arguments)
        except (DiskFullError, OSError) as error:
            if not (isinstance(error, DiskFullError) or error.errno == errno.ENOSPC):
                raise
    raise AssertionError("still no room")
