"""The data directory of a stopped service, owned for as long as something in it is made anew."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from store.errors import CorruptionError, OncelakeError
from store.files import Disk, Lock
from store.hashing import Hasher
from store.identity import load_identity
from store.journal import JournalContents, read_journal
from store.upgrade import upgraded

__all__ = ["stopped_store"]


@contextlib.contextmanager
def stopped_store(disk: Disk, root: Path) -> Iterator[tuple[Hasher, JournalContents]]:
    """Its hashes and its journal, in today's format; nobody else can open it meanwhile.

    `StoreInUseError` while a service has it; `CorruptionError` where the journal is damaged or lost.
    """
    identity = load_identity(root)
    if identity is None:
        raise OncelakeError(f"{root} is no data directory of oncelake")
    lock = Lock(root / "lock")
    try:
        upgraded(disk, root, identity)
        contents = read_journal(root / "internal" / "journal")
        if contents is None:
            raise CorruptionError(f"{root} has no journal: nothing tells which records are committed")
        yield Hasher(bytes.fromhex(identity.seed), identity.hash_bits), contents
    finally:
        lock.release()
