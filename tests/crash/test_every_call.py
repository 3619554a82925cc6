"""Whatever a crash or a power cut leaves behind, a start makes whole: nothing answered is lost, nothing comes twice."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

import store.store
from store.errors import DiskFullError
from tests.support.direct import assert_holds
from tests.support.faults import Crash, FaultyDisk
from tests.support.model import Canonical, Model
from tests.support.scenarios import SCENARIOS as ALL
from tests.support.scenarios import Run, Step, copied

T = TypeVar("T")


SCENARIOS = {
    name: (scenario.before, scenario.steps)
    for name, scenario in ALL.items()
    if not scenario.files and not scenario.harm and name not in ("singles", "a start within")
}


def model_after(steps: list[Step], root: Path) -> Model:
    run = Run(root, None, Model())
    for step in steps:
        step(run)
    run.close()
    return run.model


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
            run.store.flush_once()
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
