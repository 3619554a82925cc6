"""Whose turn it is: small files are gathered, and neither a request nor a large piece waits for that."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from ingest import queue
from ingest.batch import Batch, InputStep, Source
from ingest.queue import Job, Queue, QueueBounds
from store.journal import Position


def file_of(rows: int, name: str = "f") -> Job:
    """A piece of a file that says it has so many records."""
    step = InputStep(name, 1, name, 7, Position(), Position(1, 1), done=True)
    return Job(Batch(Source(file=name), step=step), rows=rows)


@pytest.fixture
def waiting() -> Queue:
    """A queue in which nothing waits yet."""
    return Queue(QueueBounds(), takes_files=lambda: True, has_failed=lambda: False)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files wait for others as long as a test may take."""
    monkeypatch.setattr(queue, "_GATHERED_S", 60.0)
    yield


def taken(waiting: Queue, timeout_s: float = 60.0) -> list[Job]:
    """What is taken at once."""
    began = time.monotonic()
    jobs = waiting.take(timeout_s)
    assert time.monotonic() - began < 30.0
    return jobs


def put_after(waiting: Queue, jobs: list[Job]) -> threading.Thread:
    """They come a moment after it is asked for them."""

    def put() -> None:
        time.sleep(0.05)
        for job in jobs:
            waiting.put(job, list)

    thread = threading.Thread(target=put)
    thread.start()
    return thread


def test_small_files_that_come_at_once_are_taken_at_once(waiting: Queue, patient: None) -> None:
    """The first of them waits for the others, until there are enough."""
    waiting.put(file_of(1, "first"), list)
    others = put_after(waiting, [file_of(1, f"f{number}") for number in range(queue._FEW_FILES - 1)])
    assert len(taken(waiting)) == queue._FEW_FILES
    others.join()
    waiting.put(file_of(1), list)
    others = put_after(waiting, [file_of(queue._FEW_ROWS - 1)])
    assert [job.rows for job in taken(waiting)] == [1, queue._FEW_ROWS - 1]
    others.join()


def test_a_file_that_stays_alone_waits_for_a_moment_only(waiting: Queue) -> None:
    """Then it is taken without them."""
    waiting.put(file_of(1), list)
    began = time.monotonic()
    assert len(taken(waiting)) == 1
    assert time.monotonic() - began >= queue._GATHERED_S


def test_large_pieces_requests_and_a_stop_do_not_wait(waiting: Queue, patient: None) -> None:
    """What is put back counts once, and who asks for what is there gets it."""
    for _ in range(2):
        waiting.put(file_of(queue._FEW_ROWS), list)
        waiting.put_back(taken(waiting))
        assert len(taken(waiting)) == 1
    waiting.put(file_of(1), list)
    other = put_after(waiting, [Job(Batch(Source(request="r")), rows=1)])
    assert not taken(waiting)[0].bulk
    other.join()
    assert taken(waiting, 0.0)[0].bulk
    waiting.put(file_of(1), list)
    waiting.close()
    assert taken(waiting)[0].bulk
    assert not taken(waiting)


def test_files_wait_outside_while_enough_records_of_others_are_inside() -> None:
    """A piece of any size is let in where nothing waits."""
    full = Queue(QueueBounds(bulk_rows=10), takes_files=lambda: True, has_failed=lambda: False)
    full.put(file_of(50), list)
    entered = threading.Event()
    other = threading.Thread(target=lambda: (full.put(file_of(1), list), entered.set()))
    other.start()
    assert not entered.wait(0.1)
    assert [job.rows for job in full.take(0.0)] == [50]
    assert entered.wait(60)
    other.join()
    assert [job.rows for job in full.take(0.0)] == [1]
