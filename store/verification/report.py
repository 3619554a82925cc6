"""What a verification found: differences, each with the file and the place in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from store.errors import GIVE_UP, MEND

__all__ = ["MAX_DIFFERENCES", "Difference", "Findings", "Report", "VanishedError"]

MAX_DIFFERENCES = 100
"""Differences that a report lists; that there are more is said."""

_TWICE = f"stop the service and {MEND}"
_DERIVED = "stop the service and run `oncelake rebuild`"
REPAIRS = {
    "parquet": _TWICE,
    "segment": _TWICE,
    "notification": _TWICE,
    "alert": _TWICE,
    "index": _DERIVED,
    "summary": _DERIVED,
    "rollup": _DERIVED,
    "catalog": "start the service: where the catalog does not fit it is made anew",
    "committed": "start the service: it is written anew, where the journal is whole",
    "journal": "restore internal/journal from a backup that is not older than the outbox",
    "deadLetter": f"stop the service, {GIVE_UP}",
    "store": "run `oncelake verify` again when there is less to do",
}
"""What to do about a difference, by its kind."""


class VanishedError(Exception):
    """A file that was there when the store was surveyed is gone: compaction, a merge or retention, or a loss."""


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it must be. `file` is relative to the data directory, `offset` in bytes."""

    kind: str
    file: str
    message: str
    seq: int | None = None
    offset: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The members that apply."""
        place = {"seq": self.seq, "offset": self.offset}
        return {
            "kind": self.kind,
            "file": self.file,
            **{name: value for name, value in place.items() if value is not None},
            "message": self.message,
            "repair": REPAIRS["deadLetter" if self.file.startswith("rejected") else self.kind],
        }


@dataclass
class Findings:
    """Differences as they are found, and how much was looked at."""

    differences: list[Difference] = field(default_factory=list)
    found: int = 0
    checked: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("notifications", "alerts", "records", "index", "summaries", "rollups", "deadLetters", "files"), 0
        )
    )

    def add(self, kind: str, file: str, message: str, *, seq: int | None = None, offset: int | None = None) -> None:
        """One more difference; those beyond `MAX_DIFFERENCES` are only counted."""
        self.found += 1
        if len(self.differences) < MAX_DIFFERENCES:
            self.differences.append(Difference(kind, file, message, seq, offset))

    def merge(self, other: Findings) -> None:
        """Take over what another one found."""
        self.differences = (self.differences + other.differences)[:MAX_DIFFERENCES]
        self.found += other.found
        for name, count in other.checked.items():
            self.checked[name] += count

    def add_seqs(self, kind: str, file: str, message: str, seqs: Iterable[int]) -> None:
        """One difference for each run of consecutive seqs; `message` has a place for them."""
        for first, last in ranges(seqs):
            self.add(
                kind, file, message.format(f"seq {first}" if first == last else f"seqs {first} to {last}"), seq=first
            )


@dataclass(frozen=True)
class Report:
    """The outcome of a verification, as of seq `as_of`."""

    as_of: int
    flushed_seq: int
    checked: dict[str, int]
    differences: list[Difference]
    truncated: bool
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether everything agrees."""
        return not self.differences

    def to_json(self) -> dict[str, Any]:
        """The members of the report that `oncelake verify` prints."""
        return {
            "ok": self.ok,
            "asOf": self.as_of,
            "flushedSeq": self.flushed_seq,
            "checked": self.checked,
            "differences": [difference.to_json() for difference in self.differences],
            "differencesTruncated": self.truncated,
            "seconds": round(self.seconds, 3),
        }


def ranges(seqs: Iterable[int]) -> list[tuple[int, int]]:
    """Ascending seqs as runs of consecutive ones: (first, last)."""
    runs: list[tuple[int, int]] = []
    for seq in seqs:
        if runs and runs[-1][1] == seq - 1:
            runs[-1] = (runs[-1][0], seq)
        else:
            runs.append((seq, seq))
    return runs
