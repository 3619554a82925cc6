"""From an older format of the data directory to this one, a step for each format, at a start.

A step brings what is *not* derived into the next format, in a way that may be cut anywhere and done again; then
`oncelake.json` says the new format, and the next step follows. What is derived needs no step: the start finds that it
does not stand for all records, and makes it anew. Before the first step the small files are copied aside.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from store.files import Disk, remove_directory
from store.identity import IDENTITY_FILE, Identity, save_identity
from store.schema import FORMAT_VERSION

__all__ = ["KEPT", "upgraded"]

logger = logging.getLogger("oncelake.upgrade")

KEPT = "internal/before-format"
"""Where the small files are kept as they were, with the number of the new format added."""

_SMALL = (IDENTITY_FILE, "internal/journal/*.journal", "internal/catalog.sqlite*")


def _nothing_stored(disk: Disk, root: Path) -> None:
    """What is new is derived, but an oncelake that does not know it must not open the directory.

    Format 2 has rollups and compactions, format 3 has filters in runs (those without them are searched without). Format
    4 has other filters (so are those with the old ones), and summaries in few bytes (runs of others are made anew).
    """


_STEPS: dict[int, Callable[[Disk, Path], None]] = {1: _nothing_stored, 2: _nothing_stored, 3: _nothing_stored}
"""By the format that a step begins with."""


def upgraded(disk: Disk, root: Path, identity: Identity) -> Identity:
    """The identity in the newest format, and the directory with it."""
    if identity.format == FORMAT_VERSION:
        return identity
    logger.warning("%s is upgraded from format %d to %d", root, identity.format, FORMAT_VERSION)
    _keep(disk, root)
    while identity.format < FORMAT_VERSION:
        _STEPS[identity.format](disk, root)
        identity = msgspec.structs.replace(identity, format=identity.format + 1)
        save_identity(disk, root, identity)
    return identity


def _keep(disk: Disk, root: Path) -> None:
    """Copy the small files aside, whole or not at all; a copy that is there is of the state before."""
    kept = root / f"{KEPT}-{FORMAT_VERSION}"
    if kept.is_dir():
        return
    staged = kept.with_name(f".{kept.name}.tmp")
    remove_directory(disk, staged)
    disk.make_directory(staged)
    for pattern in _SMALL:
        for path in sorted(root.glob(pattern)):
            disk.write(staged / path.name, path.read_bytes())
    disk.sync_directory(staged)
    disk.rename(staged, kept)
    disk.sync_directory(kept.parent)
