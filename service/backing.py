"""`oncelake backup`: a copy of the data directory that another machine serves."""

from __future__ import annotations

from pathlib import Path

from service.config import Config
from store.backup import back_up
from store.files import Disk

__all__ = ["backup"]

_MIB = 1 << 20


def backup(config: Config, directory: Path) -> int:
    """Copy the data directory of a running, stopped or killed service into a new directory."""
    root = Path(config.store.data_dir)
    made = back_up(root, directory, Disk(fsync=config.store.fsync))
    print(
        f"{directory} holds {root} as of seq {made.seq}: {made.files} files, {made.bytes / _MIB:.1f} MiB "
        f"in {made.seconds:.1f} s"
    )
    return 0
