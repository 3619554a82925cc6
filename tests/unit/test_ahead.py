"""A large commit of files is written while the next one is planned: on what it will leave, and again if it fails."""

from __future__ import annotations

import errno
import gc
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

import ingest.committer
import store.store
from ingest.batch import Batch, InputStep, Source
from ingest.committer import CommitterSettings
from ingest.plan import Plan, Result, planned
from store.errors import DiskFullError, OncelakeError, StoppingError, TransientError
from store.head import Commit
from store.journal import Position
from store.verify import verify
from tests.support.direct import Direct, assert_holds, chunk_of, open_store, record_of, single
from tests.support.faults import FaultyDisk
from tests.support.model import Canonical, Model

PIECE = 6


def pieces_of(name: str, records: list[Canonical | None], begin: int = 0) -> Iterator[Batch]:
    """A file in pieces of a few records, from one of them on."""
    for at in range(begin, len(records), PIECE):
        chunk = chunk_of(records[at : at + PIECE], at)
        start = Position(at, at) if at else Position()
        step = InputStep(name, 100, name, 7, start, chunk.end, done=at + PIECE >= len(records))
        yield Batch(Source(file=name), (chunk,), step=step)


class Ahead(Direct):
    """Pieces wait until `go`, a commit takes one of them, and none of them is written before `gate` opens."""

    held = True
    is_open = True

    def __init__(self, root: Path, disk: FaultyDisk | None = None) -> None:
        self.store = open_store(root, disk)
        super().__init__(self.store, CommitterSettings(commit_rows=PIECE, ahead_rows=1))
        self.close_input("another file")
        self.drain()  # the first commit tells the rules, and is never ahead
        self.gate = threading.Event()
        self.fails: list[OncelakeError] = []
        self.plans: list[Plan] = []
        self._commit_of_store = self.store.commit
        self.store.commit = self._gated  # type: ignore[method-assign]

    def _gated(self, commit: Commit) -> None:
        assert self.gate.wait(60)
        if self.fails:
            raise self.fails.pop(0)
        self._commit_of_store(commit)

    def send(self, name: str, records: list[Canonical | None]) -> list[Future[Result]]:
        """All pieces of a file."""
        return [self.submit(piece) for piece in pieces_of(name, records)]

    def go(self) -> None:
        """Commit what waits."""
        self.gate.set()
        self.drain()

    def end(self) -> None:
        """Stop, once."""
        self.gate.set()
        if self.is_open:
            self.is_open = False
            self.stop()
            self.store.close()


@pytest.fixture
def ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ahead]:
    """A committer whose writing waits."""
    committer = Ahead(tmp_path / "data")

    def remembered(*arguments: object, **options: object) -> Plan:
        committer.plans.append(planned(*arguments, **options))  # type: ignore[arg-type]
        return committer.plans[-1]

    monkeypatch.setattr(ingest.committer, "planned", remembered)
    yield committer
    committer.end()


def records_of(*numbers: int) -> list[Canonical | None]:
    """Records by their numbers."""
    return [record_of(number) for number in numbers]


def background(action: Callable[[], object]) -> threading.Thread:
    """Begin something that will wait."""
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def planned_so_many(committer: Ahead, count: int) -> None:
    """Wait until so many commits are planned."""
    for _ in range(6_000):
        if len(committer.plans) >= count:
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"{len(committer.plans)} commits were planned")


def test_a_piece_is_planned_while_the_one_before_it_is_written(ahead: Ahead) -> None:
    """Duplicates, conflicts, sums and seqs are told by records that are not durable yet."""
    model = Model()
    conflict = record_of(3, reference="other")
    records = [*records_of(1, 2, 3, 4, 5, 6), *records_of(1, 7, 8), conflict, None, record_of(9)]
    futures = ahead.send("a", records)
    running = background(ahead.drain)
    planned_so_many(ahead, 2)
    assert ahead.store.seq == 0 and not futures[0].done()
    assert ahead.plans[1].results[0].answer.accepted == 3
    ahead.gate.set()
    running.join()
    assert len(ahead.plans) == 2, "nothing was planned again"
    expected = model.take(records)
    state = ahead.input_state("a")
    assert state is not None
    answer = state.answer
    assert (answer.accepted, answer.duplicate, answer.conflict, answer.rejected) == (
        expected["accepted"], expected["duplicate"], expected["conflict"], expected["rejected"]
    )  # fmt: skip
    assert (answer.first_seq, answer.last_seq) == (1, 9)
    assert_holds(ahead.store, model)


def test_what_was_planned_on_a_commit_that_found_no_room_is_planned_again(ahead: Ahead) -> None:
    """The pieces after it are refused, those of another file get their own seqs, and the file goes on later."""
    first, second = records_of(*range(1, 13)), records_of(*range(13, 19))
    of_first, of_second = ahead.send("a", first), ahead.send("b", second)
    ahead.fails = [DiskFullError("no room")]
    ahead.go()
    with pytest.raises(DiskFullError):
        of_first[0].result(0)
    with pytest.raises(TransientError):
        of_first[1].result(0)
    assert of_second[0].result(0).answer.first_seq == 1
    again = ahead.send("a", first)
    ahead.go()
    assert [future.result(0).answer.first_seq for future in again] == [7, 13]
    model = Model()
    model.take(second)
    model.take(first)
    assert_holds(ahead.store, model)


def test_a_file_that_another_plan_was_made_beside_is_not_counted_twice(ahead: Ahead) -> None:
    """A plan that is made again begins with the pieces as they were sent."""
    files = {"a": records_of(*range(1, 7)), "b": records_of(*range(3, 9)), "c": records_of(*[3] * PIECE)}
    futures = [future for name, records in files.items() for future in ahead.send(name, records)]
    ahead.fails = [DiskFullError("no room"), DiskFullError("no room")]
    ahead.go()
    with pytest.raises(DiskFullError):
        futures[0].result(0)
    with pytest.raises(DiskFullError):
        futures[1].result(0)
    answer = futures[2].result(0).answer
    assert (answer.accepted, answer.duplicate) == (1, PIECE - 1)
    model = Model()
    model.take(files["c"])
    assert_holds(ahead.store, model)


def test_a_failed_write_leaves_nobody_waiting(ahead: Ahead) -> None:
    """Neither the pieces of the commit, nor those that were planned on it, nor those that wait."""
    futures = [future for name in "abc" for future in ahead.send(name, records_of(1, 2, 3))]
    ahead.store.failure = OSError(errno.EIO, "broken")
    ahead.go()
    for future in futures:
        with pytest.raises(StoppingError):
            future.result(0)


def test_who_comes_after_a_failed_write_hears_of_it(ahead: Ahead) -> None:
    """A service that only stops is back by itself; one whose store stopped must be started again."""
    ahead.store.failure = OSError(errno.EIO, "broken")
    for _ in range(2):
        with pytest.raises(StoppingError, match="stopped after a failed write.*must be started again"):
            ahead.send("a", records_of(1))
        ahead._queue.close()
    ahead.store.failure = None
    with pytest.raises(StoppingError, match="the service is stopping"):
        ahead.send("a", records_of(1))


def test_an_error_that_nobody_expected_leaves_nobody_waiting(ahead: Ahead, monkeypatch: pytest.MonkeyPatch) -> None:
    """The committer fails, everybody who waits is told, and the store takes nothing more."""

    def broken(*arguments: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(ingest.committer, "Result", broken)
    futures = [future for name in "abc" for future in ahead.send(name, records_of(1, 2, 3))]
    with pytest.raises(RuntimeError, match="a bug"):
        ahead.go()
    assert all(future.done() for future in futures)
    assert isinstance(ahead.store.failure, RuntimeError)


def test_requests_and_finished_files_come_after_the_commit_that_is_written(ahead: Ahead) -> None:
    """What is no piece of a file waits for it."""
    ahead.send("a", records_of(1, 2, 3))
    running = background(ahead.drain)
    planned_so_many(ahead, 1)
    ahead.close_input("b")
    posted = ahead.submit(single(record_of(2)))
    atomic = ahead.submit(single(record_of(4), atomic=True))
    assert not posted.done()
    ahead.gate.set()
    running.join()
    ahead.drain()
    assert posted.result(0).duplicate_seq == 2
    assert atomic.result(0).answer.first_seq == 4


def test_a_request_does_not_wait_for_what_is_planned_only(ahead: Ahead) -> None:
    """The plan is put back, and large commits are not made ahead while requests come."""
    files = ahead.send("a", records_of(*range(1, 19)))
    running = background(ahead.drain)
    planned_so_many(ahead, 2)
    posted = ahead.submit(single(record_of(100)))
    ahead.gate.set()
    running.join()
    assert posted.result(0).answer.first_seq == PIECE + 1
    assert [future.result(0).answer.first_seq for future in files] == [1, PIECE + 2, 2 * PIECE + 2]
    assert ahead._flight is None
    model = Model()
    for records in (records_of(*range(1, 7)), records_of(100), records_of(*range(7, 19))):
        model.take(records)
    assert_holds(ahead.store, model)


def test_what_is_known_of_a_file_of_duplicates_is_not_kept_for_long(ahead: Ahead) -> None:
    """The views that commits are planned on go with them: they hold all hot rows."""
    ahead.send("a", records_of(*range(1, 7)))
    ahead.go()
    view = weakref.ref(ahead.store._view)
    ahead.send("b", records_of(*range(1, 7)))
    ahead.send("c", records_of(*range(1, 7)))
    gc.collect()
    gc.disable()
    try:
        ahead.go()
        ahead.plans.clear()
        ahead.store.flush_once()
        assert view() is None
    finally:
        gc.enable()


def test_pieces_that_follow_nothing_make_no_commit(ahead: Ahead) -> None:
    """They are refused, and no frame is written for them."""
    ahead.send("a", records_of(*range(1, 19)))
    ahead.fails = [DiskFullError("no room")]
    number = ahead.store.head.next_number
    ahead.go()
    assert ahead.store.head.next_number == number


def test_a_commit_that_is_written_counts_as_busy(ahead: Ahead) -> None:
    """So that a disk that hangs is told by the health of the service."""
    ahead.send("a", records_of(1))
    assert ahead.run_once(0.0)
    assert ahead.busy_s > 0
    ahead.go()
    assert ahead.busy_s == 0


def test_a_journal_that_is_folded_meanwhile_changes_the_number(ahead: Ahead, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan is made again, so that a dead letter is named by the commit that it came with."""
    monkeypatch.setattr(store.store, "_JOURNAL_BYTES", 600)
    records = [None if number % 5 == 0 else record_of(number) for number in range(1, 61)]
    futures = ahead.send("a", records)
    ahead.go()
    assert all(future.result(0) for future in futures)
    assert len(ahead.plans) > len(futures), "the journal was not folded"
    model = Model()
    model.take(records)
    assert_holds(ahead.store, model)
    root = ahead.store.root
    ahead.end()
    report = verify(root)
    assert not report.differences, report.differences


@pytest.mark.parametrize("seed", range(12))
def test_a_file_on_a_disk_that_is_full_now_and_then_is_stored_once(tmp_path: Path, seed: int) -> None:
    """Whatever call finds no room, with a plan made on the commit: in the end all of the file is there, once."""
    chance = random.Random(seed)
    disk = FaultyDisk(tmp_path / "data")
    committer = Ahead(tmp_path / "data", disk)
    records = [record_of(chance.randrange(80)) if chance.random() < 0.95 else None for _ in range(120)]
    committer.gate.set()
    refused = 0
    while True:
        state = committer.input_state("a")
        if state is not None and state.done:
            break
        disk.only = ("append", "write", "open")
        disk.at, disk.code = len(disk.calls) + chance.randrange(1, 30), errno.ENOSPC
        begin = state.position.index if state else 0
        futures = [committer.submit(piece) for piece in pieces_of("a", records, begin)]
        committer.go()
        errors = [future.exception(0) for future in futures]
        assert all(error is None or isinstance(error, DiskFullError | TransientError) for error in errors), errors
        refused += sum(error is not None for error in errors)
        disk.at = None
    assert refused
    model = Model()
    expected = model.take(records)
    assert {name: getattr(state.answer, name) for name in ("received", "accepted", "duplicate", "conflict")} == {
        name: expected[name] for name in ("received", "accepted", "duplicate", "conflict")
    }
    assert_holds(committer.store, model)
    committer.end()
    disk.close()
    report = verify(tmp_path / "data")
    assert not report.differences, report.differences
