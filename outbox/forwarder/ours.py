"""Whether a checkpoint and a sink are of this store: `Refused` where going on would mix two of them."""

from __future__ import annotations

from pathlib import Path

from outbox.forwarder.checkpoint import Checkpoint
from outbox.forwarder.sink import Found, Refused, Source, head_of

__all__ = ["check_checkpoint", "check_sink"]


def check_checkpoint(found: Checkpoint, path: Path, store_id: str, feed: str, newest: int) -> None:
    """A checkpoint is of this store and feed, and not ahead of its newest seq."""
    if found.store_id != store_id:
        raise Refused(
            f"the checkpoint {path} is of another store ({found.store_id}, this one is {store_id}): "
            "remove it to begin anew, or give the sink another name"
        )
    if found.feed != feed:
        raise Refused(f"the checkpoint {path} is of the feed {found.feed}: give the sink another name")
    if found.seq > newest and found.seq > found.start:
        raise Refused(
            f"the checkpoint {path} is at seq {found.seq}, ahead of the store, which ends at {newest}: the store "
            "was restored from a backup? What the sink got since then has other seqs now. Remove the checkpoint "
            "once it is clear what the sink holds"
        )


def check_sink(found: Found, source: Source) -> None:
    """What a sink holds last is what this store has under that seq."""
    newest = source.newest()
    if found.seq > newest:
        raise Refused(
            f"the sink is ahead of the store: it holds seq {found.seq}, and the store ends at {newest}. The store "
            "was restored from a backup, or the sink belongs to another one: its messages would be swallowed as "
            "duplicates. Use another stream, subject or folder"
        )
    if found.line is not None and head_of(found.line).seq == found.seq:
        ours = source.read(found.seq - 1, 1, 1)
        if not ours or ours[0] != (found.seq, found.line):
            raise Refused(
                f"the sink holds another message under seq {found.seq} than this store: it belongs to another "
                "store, or to one that was restored and went on differently. Use another stream, subject or folder"
            )
