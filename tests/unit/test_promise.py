"""Promises between threads."""

from __future__ import annotations

import threading

import pytest

from store.promise import Promise


def test_a_waiting_thread_gets_the_result_of_another() -> None:
    """`result` blocks until it is there."""
    promise: Promise[int] = Promise()
    got: list[int] = []
    waiting = threading.Thread(target=lambda: got.append(promise.result(10)))
    waiting.start()
    promise.set_result(7)
    waiting.join()
    assert got == [7] and promise.done() and promise.exception() is None


def test_an_error_is_raised_where_the_result_is_wanted() -> None:
    """And told by `exception`."""
    promise: Promise[int] = Promise()
    promise.set_exception(KeyError("x"))
    assert isinstance(promise.exception(), KeyError)
    with pytest.raises(KeyError):
        promise.result()


def test_callbacks_run_once_whether_they_come_before_or_after() -> None:
    """In the order in which they were added."""
    promise: Promise[int] = Promise()
    seen: list[str] = []
    promise.add_done_callback(lambda done: seen.append(f"before {done.result()}"))
    promise.set_result(1)
    promise.add_done_callback(lambda done: seen.append(f"after {done.result()}"))
    assert seen == ["before 1", "after 1"]


def test_a_promise_is_settled_once_and_a_wait_can_end() -> None:
    """A second result is a mistake; a result that does not come is a timeout."""
    promise: Promise[int] = Promise()
    with pytest.raises(TimeoutError):
        promise.result(0.01)
    promise.set_result(1)
    with pytest.raises(RuntimeError):
        promise.set_result(2)


def test_what_becomes_of_a_result_is_computed_by_who_asks() -> None:
    """A changed promise is kept by the other one, and fails with it."""
    promise: Promise[int] = Promise()
    changed = promise.then(str)
    seen: list[str] = []
    changed.add_done_callback(lambda done: seen.append(done.result()))
    assert not changed.done()
    promise.set_result(7)
    assert changed.done() and changed.exception() is None and changed.result() == "7" and seen == ["7"]
    failed: Promise[int] = Promise()
    failed.set_exception(KeyError("x"))
    with pytest.raises(KeyError):
        failed.then(str).result()
