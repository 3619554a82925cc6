"""`oncelake rebuild`: everything derived anew from the records; `--mend`: the records themselves, where one copy is."""

from __future__ import annotations

from pathlib import Path

from outbox.mend import mend as mend_store
from service.config import Config
from service.exits import DONE, PROBLEM
from service.logs import configure_logging
from store.files import Disk
from store.rebuild import rebuild as rebuild_store

__all__ = ["mend", "rebuild"]


def rebuild(config: Config) -> int:
    """Make index, summaries and rollups anew; refused while a service runs."""
    configure_logging(config.log.level, config.log.format)
    root = Path(config.store.data_dir)
    made = rebuild_store(root, Disk(fsync=config.store.fsync))
    print(
        f"{root}: {made.flushed} records of {made.files} Parquet files indexed and summed anew in {made.seconds:.1f} s"
    )
    return DONE


def mend(config: Config, *, give_up_letters: bool) -> int:
    """Make missing and damaged Parquet files and segments again; `PROBLEM` where something cannot be."""
    configure_logging(config.log.level, config.log.format)
    root = Path(config.store.data_dir)
    mended = mend_store(
        root,
        Disk(fsync=config.store.fsync),
        lambda what: print(f"mended: {what}", flush=True),
        give_up_letters=give_up_letters,
    )
    for what in mended.hopeless:
        print(f"lost: {what}", flush=True)
    outcome = "what is lost needs a backup" if mended.hopeless else "all of it is whole"
    print(
        f"{root}: {mended.done} mended, {len(mended.hopeless)} lost, of {mended.files} Parquet files and "
        f"{mended.segments} segments, in {mended.seconds:.1f} s: {outcome}"
    )
    return PROBLEM if mended.hopeless else DONE
