"""A commit, and the head that it is planned on: the store as it is, or as the commit under way will leave it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import pyarrow as pa

from store.arrays import I64, U64
from store.fresh import Committed, CommittedRows
from store.index import Hits
from store.journal import InputState, Rules, added
from store.lookup import rows_at
from store.view import View

__all__ = ["Commit", "Head"]


@dataclass(frozen=True)
class Commit:
    """What one commit writes. The lines are whole; `committed` is None where nothing was accepted."""

    processed_at_us: int
    committed: Committed | CommittedRows | None = None
    notifications: bytes | memoryview = b""
    alerts: bytes | memoryview = b""
    first_alert_seq: int = 0
    dead_letters: bytes = b""
    inputs: tuple[InputState, ...] = ()
    closed: tuple[str, ...] = ()
    rules: Rules | None = None
    kept: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Head:
    """What a commit is planned on: the next number, the newest seq and time, the rules, the files under way, the view.

    `settle` gives the view with the runs of all commits but small ones of fewer records than it is told.
    """

    next_number: int
    seq: int
    processed_at_us: int
    rules: Rules | None
    inputs: Mapping[str, InputState]
    settle: Callable[[int], View]

    def find_ids(self, hi: U64, lo: U64) -> Hits:
        """Index rows that share a hash with one of these; `hi` must ascend."""
        return self.settle(1).find_ids(hi, lo)

    def find_summaries(self, hi: U64, lo: U64) -> tuple[I64, pa.RecordBatch]:
        """What is known of keys by unit, as (position in the question, row of `SUMMARY_SCHEMA`); `hi` must ascend."""
        return self.settle(1).find_summaries(hi, lo)

    def each(self) -> View:
        """What few records are looked up in, one by one: small commits need not be settled for it."""
        return self.settle(sys.maxsize)

    def rows_at(self, days: I64, seqs: I64) -> pa.Table:
        """The stored rows with these seqs; see `store.lookup`."""
        return rows_at(self.settle(1).snapshot(), days, seqs)

    def after(self, commit: Commit) -> Head:
        """The head once a large commit of files is durable, in its own memory: the store may go on meanwhile."""
        assert not commit.closed
        assert commit.rules is None
        assert not isinstance(commit.committed, CommittedRows)
        view = self.settle(1)
        if commit.committed is not None:
            seq = self.seq + commit.committed.count
            view = replace(view, seq=seq, active=view.active.added(commit.committed))
        inputs = {**self.inputs, **{step.path: added(self.inputs.get(step.path), step) for step in commit.inputs}}
        settled = functools.cache(view.settled)
        return Head(
            next_number=self.next_number + 1,
            seq=view.seq,
            processed_at_us=commit.processed_at_us,
            rules=self.rules,
            inputs=inputs,
            settle=lambda rows: settled(),
        )
