"""`oncelake rebuild`: everything derived anew from the records."""

from __future__ import annotations

from pathlib import Path

from service.config import Config
from service.logs import configure_logging
from store.files import Disk
from store.rebuild import rebuild as rebuild_store

__all__ = ["rebuild"]


def rebuild(config: Config) -> int:
    """Make index, summaries and rollups anew; refused while a service runs."""
    configure_logging(config.log.level, config.log.format)
    root = Path(config.store.data_dir)
    made = rebuild_store(root, Disk(fsync=config.store.fsync))
    print(
        f"{root}: {made.flushed} records of {made.files} Parquet files indexed and summed anew in {made.seconds:.1f} s"
    )
    return 0
