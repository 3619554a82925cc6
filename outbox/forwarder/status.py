"""The state of one sink, for health, metrics and the command line."""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["SinkStatus"]


@dataclass(frozen=True)
class SinkStatus:
    """`state` is one of: starting, ok, retrying, refused, disabled, elsewhere (another process ships), stopped.

    `seq` is the checkpoint; `lag_seqs` the committed seqs above it, `lag_s` the age of the oldest of them that must
    go out. `attempts`, `failures` and `delivered` count since the start, `dead_letters` bytes on disk.
    """

    name: str
    feed: str
    kind: str
    url: str
    state: str
    problem: str
    seq: int
    lag_seqs: int
    lag_s: float
    attempts: int
    failures: int
    delivered: int
    dead_letter_bytes: int

    def to_json(self) -> dict[str, object]:
        """As `GET /health` shows it."""
        names = {"lag_seqs": "lagSeqs", "lag_s": "lagSeconds", "dead_letter_bytes": "deadLetterBytes"}
        return {names.get(key, key): value for key, value in asdict(self).items() if key != "name"}
