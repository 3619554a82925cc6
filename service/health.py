"""The health of a service: what each component does, and by what it can be seen that it does not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.runtime import Lake

__all__ = ["health_of", "lack_of_room"]

_LONGEST_COMMIT_S = 30.0
_LATEST_FLUSH_S = 60.0
_MIN_FREE_INODES = 100


def health_of(lake: Lake) -> dict[str, dict[str, object]]:
    """By component; `status` is "ok" or says what is wrong, for a person."""
    store, inbox = lake.store, lake.inbox
    problem = _problem_of_store(lake)
    return {
        "store": {
            "status": "ok" if problem is None else problem,
            "seq": store.seq,
            "flushedSeq": store.flushed,
            "hotRows": store.hot_rows,
            "queue": lake.committer.waiting,
        },
        "inbox": {
            "status": "ok" if inbox.alive and inbox.problem is None else inbox.problem or "stopped",
            "waiting": inbox.waiting,
        },
        "forwarder": {
            "status": "ok" if lake.forwarder.is_alive else "stopped",
            "sinks": {status.name: status.to_json() for status in lake.forwarder.statuses()},
        },
    }


def _problem_of_store(lake: Lake) -> str | None:
    store, committer, flusher, merger = lake.store, lake.committer, lake.flusher, lake.merger
    problems = (flusher.problem, merger.problem, lake.compactor.problem, store.damage, lake.scrubber.problem)
    known = store.failure or next(filter(None, problems), None)
    if known is not None:
        return str(known)
    if not (committer.alive and flusher.alive and merger.alive):
        return "it takes no commits"
    if not lake.scrubber.alive:
        return "nobody looks for rot any more: the service must be started again"
    if committer.busy_s > _LONGEST_COMMIT_S:
        return f"a commit has been under way for {committer.busy_s:.0f} s: does the disk answer?"
    if flusher.overdue_s > _LATEST_FLUSH_S:
        return f"{store.hot_rows} records have waited {flusher.overdue_s:.0f} s too long to be put into Parquet"
    return lack_of_room(store.root, lake.config.store.min_free_bytes)


def lack_of_room(root: Path, min_free_bytes: int) -> str | None:
    """What there is too little of on the device of the data directory."""
    if not min_free_bytes:
        return None
    found = os.statvfs(root)
    free = found.f_bavail * found.f_frsize
    if free < min_free_bytes:
        return f"{free} bytes are free on the device of {root} (store.min_free_bytes is {min_free_bytes}): make room"
    if found.f_files and found.f_favail < _MIN_FREE_INODES:
        return f"{found.f_favail} inodes are free on the device of {root}: make room"
    return None
