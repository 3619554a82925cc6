"""One sink and its feed: read, send, move the checkpoint, wait, try again.

`step()` does one bounded piece of work and says how long to wait for the next, so that a test can drive it with a
clock of its own. The checkpoint moves only after the sink's acknowledgement. It may stay behind by some 0.2 s of
work, which a crash then sends again; sinks that can tell where they stand are asked at every connection.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from outbox.forwarder.backoff import delay_s
from outbox.forwarder.checkpoint import Checkpoint, Desk, ShippedElsewhereError
from outbox.forwarder.ours import check_checkpoint, check_sink
from outbox.forwarder.settings import Forward
from outbox.forwarder.sink import Found, Gone, Message, Refused, Rejected, Sink, Source, Stale, Undelivered
from outbox.forwarder.status import SinkStatus
from outbox.forwarder.waiting import age_s, filter_of, oldest_waiting
from store.errors import OncelakeError
from store.files import Disk

__all__ = ["IDLE_S", "Shipper"]

logger = logging.getLogger("oncelake.forwarder")

IDLE_S = 0.1
"""Between looks for new lines."""

_ELSEWHERE_S = 1.0
_SAVE_S = 0.2
_RETRY_LOOK_S = 1.0
_READS = 16
"""Reads of one step: a filter that lets nothing through must not keep a stop waiting."""

_BATCH_BYTES = {"webhook": 1 << 20, "objects": 32 << 20}
_OTHER_BATCH_BYTES = 8 << 20


class Shipper:
    """Ships one feed to one sink; used by one thread. `make_sink` may raise `Undelivered` like a sink's methods."""

    def __init__(
        self,
        table: Forward,
        source: Source,
        make_sink: Callable[[], Sink],
        root: Path,
        store_id: str,
        disk: Disk,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.table = table
        self.desk = Desk(root, table.name, disk)
        self.drain = False
        """Send what there is, without lingering for a fuller batch."""
        self._source = source
        self._make_sink = make_sink
        self._store_id = store_id
        self._clock, self._now, self._chance = clock, now, chance
        self._limit = table.batch_lines
        self._limit_bytes = _BATCH_BYTES.get(table.kind, _OTHER_BATCH_BYTES)
        self._linger_s = table.linger_s if table.kind == "objects" else 0.0
        self._is_wanted = filter_of(table)
        self._checkpoint: Checkpoint | None = None
        self._sink: Sink | None = None
        self._batch: list[Message] = []
        self._batch_bytes = 0
        self._began = 0.0
        self._position = 0
        self._width = self._limit
        self._not_before = -1.0
        self._looked = -_RETRY_LOOK_S
        self._saved = -1.0
        self._is_dirty = False
        self._is_resending = False
        self._resend_until = 0
        self._letters: list[Message] = []
        self._oldest: bytes | None = None
        self.failures_in_row = 0
        self._state, self._problem = "starting", ""
        self._attempts = self._failures = self._delivered = 0

    @property
    def shipped(self) -> int:
        """The checkpoint: everything up to this seq is done with."""
        return self._checkpoint.seq if self._checkpoint else 0

    def newest(self) -> int:
        """The newest committed seq of the feed's store."""
        return self._source.newest()

    def step(self) -> float:
        """One bounded piece of work; the seconds until another is worth while (0: at once)."""
        wait = self._not_before - self._clock()
        if wait > 0:
            return wait
        try:
            return self._step()
        except ShippedElsewhereError as error:
            self._state, self._problem = "elsewhere", str(error)
            self._oldest = self._oldest_elsewhere()
            return _ELSEWHERE_S
        except (Undelivered, OncelakeError, OSError) as error:
            return self._failed(error)

    def _step(self) -> float:
        checkpoint = self._checkpoint or self._take()
        self._look_for_retry(checkpoint)
        ready = self._gather()  # before connecting, so that the lag is known
        if checkpoint.disabled:
            self._state, self._problem = "disabled", checkpoint.disabled
            self._save()  # where the disk was full when it was told
            return _RETRY_LOOK_S
        if self._sink is None:
            self._connect(checkpoint)
            ready = self._gather()
        if self._is_resending:
            self._resend(checkpoint)
            return 0.0
        if not ready:
            if not self._batch and self._position > checkpoint.seq:
                checkpoint.seq = self._position  # nothing in between is for this sink
                self._is_dirty = True
            self._well()
            self._save()
            return IDLE_S
        self._ship(checkpoint)
        return 0.0

    def _oldest_elsewhere(self) -> bytes | None:
        """The oldest line that another process has not delivered."""
        with contextlib.suppress(OncelakeError, OSError):  # that process says what is wrong
            checkpoint = self.desk.load()
            return oldest_waiting(self._source, checkpoint.seq if checkpoint else 0, self._is_wanted)
        return None

    def _take(self) -> Checkpoint:
        self.desk.take()
        try:
            self._checkpoint = self._loaded()
        except BaseException:
            self.desk.release()
            raise
        self._position = self._checkpoint.seq
        self._oldest = None
        return self._checkpoint

    def _loaded(self) -> Checkpoint:
        found, newest = self.desk.load(), self._source.newest()
        path = self.desk.folder / f"{self.table.name}.json"
        if found is None:
            start = self.table.start
            first = start if isinstance(start, int) else newest if start == "latest" else 0
            found = Checkpoint(self._store_id, self.table.feed, first, first)
            self.desk.save(found)
        check_checkpoint(found, path, self._store_id, self.table.feed, newest)
        return found

    def _look_for_retry(self, checkpoint: Checkpoint) -> None:
        if self._clock() - self._looked < _RETRY_LOOK_S:
            return
        self._looked = self._clock()
        was, self._is_resending = self._is_resending, self.desk.is_asked_to_retry()
        if self._is_resending and not was:
            self._resend_until = self.desk.letter_bytes()
        if self._is_resending and checkpoint.disabled:
            checkpoint.disabled = ""
            self._save(force=True)

    def _connect(self, checkpoint: Checkpoint) -> None:
        sink = self._make_sink()
        try:
            found = sink.open()
            if found is not None:
                self._agree(checkpoint, found)
        except BaseException:
            sink.close()
            raise
        self._sink = sink

    def _agree(self, checkpoint: Checkpoint, found: Found) -> None:
        """Bring the checkpoint to where the sink stands, or refuse a sink that is not ours."""
        check_sink(found, self._source)
        if found.seq < checkpoint.sent:
            logger.warning(
                "forward %s: the sink acknowledged seq %d and holds %d: what it lost is sent again",
                self.table.name, checkpoint.sent, found.seq,
            )  # fmt: skip
        elif found.seq <= checkpoint.seq:
            return
        checkpoint.seq = max(found.seq, checkpoint.start)
        checkpoint.sent = found.seq
        self._is_dirty = True
        self._forget_batch(checkpoint.seq)

    def _forget_batch(self, position: int) -> None:
        self._batch, self._batch_bytes, self._position = [], 0, position

    def _gather(self) -> bool:
        """Read on; whether a batch is ready to go."""
        for _ in range(_READS):
            room, room_bytes = self._limit - len(self._batch), self._limit_bytes - self._batch_bytes
            if room <= 0 or room_bytes <= 0:
                return True
            newest = self._source.newest()
            if newest <= self._position:
                break
            lines = self._source.read(self._position, room, room_bytes)
            if not lines:
                self._position = newest  # an alert feed has gaps
                break
            self._position = lines[-1][0]
            for seq, line in lines:
                if self._is_wanted(line):
                    if not self._batch:
                        self._began = self._clock()
                    self._batch.append(Message(seq, line))
                    self._batch_bytes += len(line)
            if self._linger_s == 0.0 and self._batch:
                return True
        lingered = self._clock() - self._began >= self._linger_s
        return bool(self._batch) and (lingered or self.drain)

    def _ship(self, checkpoint: Checkpoint) -> None:
        assert self._sink is not None
        part = self._batch[: self._width]
        self._attempts += 1
        self._sink.send(part)
        self._delivered += len(part)
        self._width = min(2 * self._width, self._limit)
        checkpoint.sent = part[-1].seq
        self._well()
        self._done_with(checkpoint, part)

    def _done_with(self, checkpoint: Checkpoint, part: list[Message]) -> None:
        self._batch = self._batch[len(part) :]
        self._batch_bytes = sum(len(line) for _, line in self._batch)
        checkpoint.seq = part[-1].seq if self._batch else self._position
        self._is_dirty = True
        self._save(force=self._clock() - self._saved >= _SAVE_S)

    def _well(self) -> None:
        if self.failures_in_row:
            logger.info("forward %s: delivers again, at seq %d", self.table.name, self.shipped)
        self.failures_in_row = 0
        self._state, self._problem = "ok", ""
        if self._checkpoint is not None and self._checkpoint.problem:
            self._is_dirty = True

    def _save(self, *, force: bool = True) -> None:
        if self._is_dirty and force and self._checkpoint is not None:
            checkpoint = self._checkpoint
            checkpoint.attempts, checkpoint.failures = self._attempts, self._failures
            checkpoint.state, checkpoint.problem = self._state, self._problem
            self.desk.save(checkpoint)
            self._is_dirty = False
            self._saved = self._clock()

    def _resend(self, checkpoint: Checkpoint) -> None:
        """A chunk of the dead letters that were there when it was asked for; behind them they are cleared away."""
        assert self._sink is not None
        self._letters, end = [], checkpoint.resent
        if checkpoint.resent < self._resend_until:
            self._letters, end = self.desk.letters(checkpoint.resent, min(self._width, 1_000))
        if self._letters:
            self._attempts += 1
            self._sink.resend(self._letters)
            self._delivered += len(self._letters)
            self._width = min(2 * self._width, self._limit)
            self._passed_letters(checkpoint, end)
            return
        passed, checkpoint.resent = checkpoint.resent, 0  # first, so that letters of later are never skipped
        self._is_dirty = True
        try:
            self._save()
        except OSError:
            checkpoint.resent = passed  # the disk is full: they are not sent once more for that
            raise
        self.desk.remove_letters(passed)
        self.desk.answer_retry()
        self._is_resending = False

    def _passed_letters(self, checkpoint: Checkpoint, end: int) -> None:
        self._letters, checkpoint.resent = [], end
        self._is_dirty = True
        self._well()
        self._save()

    def _failed(self, error: Exception) -> float:
        self.failures_in_row += 1
        self._failures += 1
        if self._problem != str(error):
            logger.warning("forward %s: %s", self.table.name, error)
        self._state, self._problem = "refused" if isinstance(error, Refused) else "retrying", str(error)
        if not isinstance(error, Rejected) and not (isinstance(error, Undelivered) and error.retry_after_s):
            self._disconnect()
        if isinstance(error, Stale) and self.failures_in_row == 1:
            return 0.0
        try:
            if self._is_put_aside(error):
                return 0.0
        except (OncelakeError, OSError) as second:
            self._letters = []
            self._state, self._problem = "retrying", f"{error}; and it cannot be put aside: {second}"
            logger.warning("forward %s: %s", self.table.name, self._problem)
        self._is_dirty = True
        with contextlib.suppress(OSError):  # a full disk must not end the sink's thread
            self._save(force=self._clock() - self._saved >= _SAVE_S)
        wait = delay_s(max(1, self.failures_in_row), self._chance())
        if isinstance(error, Undelivered):
            wait = max(wait, error.retry_after_s)
        self._not_before = self._clock() + wait
        return wait

    def _is_put_aside(self, error: Exception) -> bool:
        """Whether it goes on at once without what failed. What the disk does not take is neither passed nor lost."""
        checkpoint, part = self._checkpoint, self._batch[: self._width]
        if isinstance(error, Gone) and checkpoint is not None:
            checkpoint.disabled = str(error)
            self._is_dirty = True
            self._save()
            return True
        is_message = isinstance(error, Undelivered) and not isinstance(error, Refused | Stale)
        if isinstance(error, Rejected) and len(self._letters or part) > 1:
            self._width = 1  # which of them is it?
        elif isinstance(error, Rejected) and self._letters and checkpoint is not None:
            end = self.desk.letters(checkpoint.resent, 1)[1]
            self.desk.bury(self._letters, str(error))  # it stays dead, at the end, and holds up no other
            self._passed_letters(checkpoint, end)
            return True
        elif self._letters:
            self._letters = []  # read anew by the next attempt
        elif part and checkpoint is not None and is_message and 0 < self.table.attempts <= self.failures_in_row:
            self.desk.bury(part, str(error))
            logger.error("forward %s: seqs %d to %d are dead letters now", self.table.name, part[0].seq, part[-1].seq)
            self.failures_in_row = 0
            self._done_with(checkpoint, part)
            self._save()
            return True
        return False

    def broke(self, error: Exception) -> float:
        """Something that no sink should raise: treated like a failure of the sink, and waited for."""
        return self._failed(Undelivered(f"{type(error).__name__}: {error}"))

    def _disconnect(self) -> None:
        if self._sink is not None:
            self._sink.close()
            self._sink = None

    def close(self) -> None:
        """Keep the checkpoint, close the connection, give the lock free."""
        try:
            self._save()
        finally:
            self._disconnect()
            self._checkpoint = None
            self.desk.release()
            self._state = "stopped"

    def is_drained(self, target: int) -> bool:
        """Whether everything up to a seq is done with, and no dead letter waits to be sent again."""
        return self.shipped >= target and not self._batch and not self.desk.is_asked_to_retry()

    def status(self) -> SinkStatus:
        """What there is to know; from any thread. A checkpoint that cannot be read is none, and a problem."""
        batch, newest = self._batch, self._source.newest()
        oldest = batch[0].line if batch else self._oldest
        problem = self._problem
        try:
            checkpoint = self._checkpoint or self.desk.load()  # whoever ships for it keeps it there
        except (OncelakeError, OSError) as error:
            checkpoint, problem = None, problem or str(error)
        seq = checkpoint.seq if checkpoint else 0
        attempts, failures = self._attempts, self._failures
        if self._state == "elsewhere" and checkpoint is not None:
            attempts, failures = checkpoint.attempts, checkpoint.failures
        return SinkStatus(
            self.table.name, self.table.feed, self.table.kind, self.table.shown_url, self._state, problem,
            seq, max(0, newest - seq), age_s(oldest, self._now()), attempts, failures, self._delivered,
            self.desk.letter_bytes(),
        )  # fmt: skip
