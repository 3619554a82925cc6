"""What one commit takes of the jobs that wait: the next pieces of each, and what else it says."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ingest.plan import Part, Piece
from ingest.queue import Job
from store.errors import TransientError
from store.journal import InputState, Position

__all__ = ["Group", "refuse_astray"]


@dataclass(frozen=True)
class Group:
    """The jobs of one commit and what it takes of each; the files it forgets, and the floors of the logs it raises."""

    jobs: list[Job]
    parts: list[Part]
    closed: tuple[str, ...]
    floors: Mapping[str, int]
    began: float

    @classmethod
    def of(cls, jobs: list[Job], rows: int, closed: tuple[str, ...], floors: Mapping[str, int]) -> Group:
        """Pieces of so many rows at most are taken of each job, at least one; all of an atomic one."""
        parts = [Part(job.batch, _next_pieces(job, rows)) for job in jobs]
        return cls(jobs, parts, closed, floors, time.perf_counter())

    @property
    def received(self) -> int:
        """Records, valid or not."""
        return sum(part.received for part in self.parts)

    def give_back(self) -> None:
        """The parts to their jobs: nothing of them is committed."""
        for job, part in zip(self.jobs, self.parts, strict=True):
            job.pieces.extendleft(reversed(part.pieces))


def _next_pieces(job: Job, rows: int) -> tuple[Piece, ...]:
    taken: list[Piece] = []
    count = 0
    while job.pieces and (job.batch.atomic or not taken or count + job.pieces[0].chunk.received <= rows):
        taken.append(job.pieces.popleft())
        count += taken[-1].chunk.received
    return tuple(taken)


def refuse_astray(jobs: Sequence[Job], inputs: Mapping[str, InputState]) -> list[Job]:
    """Pieces of files that do not follow what is committed have their error: one before them failed. The other jobs."""
    ends: dict[str, Position] = {}
    kept = []
    for job in jobs:
        step = job.batch.step
        if step is not None:
            state = inputs.get(step.path)
            is_same = state is not None and (state.sha256, state.started_at_us) == (step.sha256, step.started_at_us)
            expected = ends.get(step.path, state.position if state is not None and is_same else Position())
            if step.begin != expected:
                job.future.set_exception(TransientError(f"{step.path}: a piece before this one was not committed"))
                continue
            ends[step.path] = step.end
        kept.append(job)
    return kept
