"""The inbox: files that sources drop, each done exactly once, also when the service dies in the middle.

Events (watchfiles) make it quick, a rescan is the truth: of 20,000 files dropped in one burst the events named 17,353.
A file is taken when no process holds it open for writing, which a read lease tells at once.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from watchfiles import watch

from ingest.committer import Committer
from ingest.decode import Limits
from ingest.files import FileSubmission, submit_file
from ingest.receipts import move, receipt_of, receipt_path
from ingest.record import Rules
from store.errors import StoppingError, TransientError
from store.files import Disk
from store.journal import InputState
from store.threads import give_way

__all__ = ["Inbox", "InboxSettings"]

logger = logging.getLogger("oncelake.inbox")

_IN_FLIGHT = 256
"""Files that are finished together: their directories are synced once for all of them."""


@dataclass(frozen=True)
class InboxSettings:
    """`settle_s`: how long size and time of a file rest before it is taken, where leases do not work.

    `sources`: the sourceIds that files below a folder of the inbox may bring; the innermost one holds.
    """

    root: Path
    settle_s: float = 2.0
    rescan_s: float = 2.0
    sources: Mapping[str, frozenset[str]] = field(default_factory=dict)


class Inbox:
    """The watcher of one data directory's `inbox/`."""

    def __init__(
        self,
        disk: Disk,
        committer: Committer,
        rules: Rules,
        limits: Limits,
        settings: InboxSettings,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        on_idle: Callable[[], None] = lambda: None,
    ) -> None:
        self._disk = disk
        self._committer = committer
        self._rules = rules
        self._limits = limits
        self._settings = settings
        self._now_us = now_us
        self._on_idle = on_idle
        self._inbox = settings.root / "inbox"
        self._resting: dict[Path, tuple[int, int, float]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="inbox", daemon=True)
        self.problem: str | None = None
        self._trouble: str | None = None
        self.waiting = 0
        for name in ("inbox", "processed", "failed"):
            disk.make_directory(settings.root / name)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float | None = None) -> None:
        """End the thread; a file under way is gone on with at the next start."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    @property
    def alive(self) -> bool:
        """Whether files are still taken."""
        return self._thread.is_alive()

    def finish_left(self) -> None:
        """Finish files that were committed to their end before a crash: moved, receipt, forgotten."""
        done = [state for state in self._committer.input_states() if state.done and not state.path.startswith("/")]
        if done:
            self._finish([(state, None) for state in done])

    def run_once(self) -> int:
        """One scan: take every file that is ready, and see it to its receipt. Returns how many were finished."""
        self._trouble = None
        self.finish_left()
        pending: deque[FileSubmission] = deque()
        finished = 0
        ready, self.waiting = self._ready()
        for path in ready:
            if self._stop.is_set():
                break
            name = str(path.relative_to(self._inbox))
            try:
                pending.append(
                    submit_file(self._committer, path, name, self._rules_of(name), self._limits, self._now_us())
                )
            except FileNotFoundError:
                continue  # taken back by its source
            except StoppingError:
                self._stop.set()
                break
            except Exception as error:  # it must not keep the others waiting
                self._waits(name, error)
                continue
            if len(pending) >= 2 * _IN_FLIGHT:
                finished += self._settle(pending, at_least=_IN_FLIGHT)
            self.waiting -= 1
        finished += self._settle(pending, at_least=len(pending))
        self.problem = self._trouble
        return finished

    def _rules_of(self, name: str) -> Rules:
        """The rules of a file, by the innermost folder that is bound to sources."""
        for folder in PurePath(name).parents:
            sources = self._settings.sources.get(str(folder))
            if sources is not None:
                return replace(self._rules, sources=sources)
        return self._rules

    def _waits(self, name: str, error: Exception) -> None:
        """A file stays in the inbox and is tried again at the next scan."""
        self._trouble = f"{name}: {error}"
        logger.warning("%s waits: %s", name, error, exc_info=not isinstance(error, TransientError | OSError))

    def _settle(self, pending: deque[FileSubmission], at_least: int) -> int:
        """Finish the oldest `at_least` files together, waiting for their commits."""
        states: list[tuple[InputState, os.stat_result | None]] = []
        for _ in range(at_least):
            submission = pending.popleft()
            try:
                states.append((submission.wait(self._committer), submission.seen))
            except StoppingError:
                continue
            except Exception as error:
                self._waits(submission.name, error)
        return self._finish(states)

    def _finish(self, states: list[tuple[InputState, os.stat_result | None]]) -> int:
        """Move files, write receipts, sync the directories once, and only then forget the inputs. Returns how many."""
        moved: dict[Path, InputState] = {}
        gone = []
        for state, seen in states:
            root = self._settings.root / ("failed" if state.failure else "processed")
            try:
                moved[move(self._disk, self._inbox, root, state, seen)] = state
            except FileNotFoundError:
                logger.warning("%s was taken out of the inbox before its receipt was written", state.path)
                gone.append(state)
            except OSError as error:
                self._waits(state.path, error)
        self._write_receipts(moved)
        directories = {path.parent for path in moved} | {(self._inbox / state.path).parent for state in moved.values()}
        for directory in directories:
            if directory.is_dir():
                self._disk.sync_directory(directory)
        finished = [*gone, *moved.values()]
        for state in finished:
            self._committer.close_input(state.path)
            logger.info("%s: %d accepted of %d", state.path, state.answer.accepted, state.answer.received)
        return len(finished)

    def _write_receipts(self, moved: dict[Path, InputState]) -> None:
        """Of the files at these places; one whose receipt cannot be written waits, and is taken out of `moved`."""
        now_us = self._now_us()
        receipts = {
            receipt_path(target): (target, receipt_of(state, now_us))
            for target, state in moved.items()
            if not receipt_path(target).exists()
        }
        try:
            self._disk.replace_all({path: receipt for path, (_, receipt) in receipts.items()})
        except OSError:
            for path, (target, receipt) in receipts.items():
                try:
                    self._disk.replace_all({path: receipt})
                except OSError as error:
                    self._waits(moved.pop(target).path, error)

    def _ready(self) -> tuple[list[Path], int]:
        """The files that can be taken, oldest first, and how many there are in all."""
        found = sorted(self._named(_candidates(self._inbox)), key=lambda entry: (entry[1], str(entry[0])))
        present = {path for path, _ in found}
        self._resting = {path: seen for path, seen in self._resting.items() if path in present}
        ready = [path for path, _ in found if self._is_complete(path)]
        return ready, len(found)

    def _named(self, found: Iterator[tuple[Path, int]]) -> Iterator[tuple[Path, int]]:
        """The files, those renamed whose names are no UTF-8: receipts and dead letters could not tell them."""
        for path, time_ns in list(found):
            printable = os.fsencode(path.relative_to(self._inbox)).decode("utf-8", "backslashreplace")
            target = self._inbox / printable
            if target != path:
                try:
                    self._disk.make_directory(target.parent)
                    self._disk.move_new(path, target)
                except (FileExistsError, FileNotFoundError):
                    continue
                except OSError as error:
                    self._waits(printable, error)
                    continue
                yield target, time_ns
                continue
            yield path, time_ns

    def _is_complete(self, path: Path) -> bool:
        """Whether nobody writes the file any more."""
        try:
            if path.is_symlink() or not path.is_file():
                return True  # refused later, with a receipt that says why
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return False  # taken back by its source
        except OSError as error:  # mostly its permissions, which do not change by themselves
            self._waits(str(path.relative_to(self._inbox)), error)
            return False
        try:
            if sys.platform != "linux":
                return self._has_rested(path, os.fstat(handle))
            # Whoever opens the file in between is told by a signal to us: by default SIGIO, which kills the process.
            fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return False
            return self._has_rested(path, os.fstat(handle))
        finally:
            os.close(handle)
        return True

    def _has_rested(self, path: Path, now: os.stat_result) -> bool:
        seen = self._resting.get(path)
        if seen is None or seen[:2] != (now.st_size, now.st_mtime_ns):
            self._resting[path] = (now.st_size, now.st_mtime_ns, time.monotonic())
            return False
        return time.monotonic() - seen[2] >= self._settings.settle_s

    def _run(self) -> None:
        give_way()
        wait_ms = int(self._settings.rescan_s * 1000)
        self._scan()
        try:
            for _ in watch(
                self._inbox,
                stop_event=self._stop,
                debounce=50,
                step=10,
                rust_timeout=min(wait_ms, 500),
                yield_on_timeout=True,
                raise_interrupt=False,
                watch_filter=None,
            ):
                self._scan()
        except Exception:  # no inotify watches left, for one
            logger.warning("no events come from %s, it is only scanned", self._inbox, exc_info=True)
        while not self._stop.wait(self._settings.rescan_s):
            self._scan()

    def _scan(self) -> None:
        """Scan until a scan finds nothing more to finish."""
        finished = 0
        try:
            while not self._stop.is_set() and (found := self.run_once()):
                finished += found
            if finished:
                self._on_idle()
        except Exception as error:
            self.problem = f"the inbox could not be read: {error}"
            logger.exception("the inbox could not be read, it is tried again")
            self._stop.wait(1.0)


def _candidates(directory: Path) -> Iterator[tuple[Path, int]]:
    """(path, mtime in ns) of everything that is dropped and not hidden or marked as unfinished by its name."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name.endswith((".tmp", ".part")):
                continue
            if entry.is_dir(follow_symlinks=False):
                try:
                    yield from _candidates(Path(entry.path))
                except OSError as error:
                    logger.warning("%s is passed over: %s", entry.path, error)
                continue
            try:
                yield Path(entry.path), entry.stat(follow_symlinks=False).st_mtime_ns
            except FileNotFoundError:
                continue
