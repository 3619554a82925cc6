"""Large files are synced, and removed, in steps: the commits beside a sync of all of it would wait for all of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from store import files
from store.files import Disk, remove_directory
from store.flush import checksum_of, write_run
from store.index import entries
from store.merging import Merging, merge
from store.parquet import describe, write_partition
from store.schema import STORED
from store.snapshot import SealedFile

STEP = 1 << 16


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How large the file was at each sync, with steps of 64 KiB."""
    seen: list[int] = []
    monkeypatch.setattr(files, "STEP_BYTES", STEP)
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append(os.fstat(handle).st_size))
    return seen


def check_steps(sizes: list[int], path: Path, piece: int) -> None:
    """No sync had more to do than a step and a piece, and the last one saw all."""
    assert sizes[-1] == path.stat().st_size > 4 * STEP
    assert max(after - before for before, after in zip([0, *sizes], sizes, strict=False)) <= STEP + piece


def test_a_run_is_synced_while_it_is_written(tmp_path: Path, sizes: list[int]) -> None:
    """After what makes a step full; size and checksum are those of the file."""
    hi = np.arange(20_000, dtype=np.uint64)
    (page,) = entries(hi, hi, hi, hi).pages
    pages = [page.slice(first, 1_000) for first in range(0, len(hi), 1_000)]
    row = write_run(Disk(), tmp_path / "run", "index", "run", pages, (1, len(hi)))
    check_steps(sizes, tmp_path / "run", 33_000)
    assert (row.bytes, row.sum) == checksum_of(tmp_path / "run")


def test_a_file_of_pieces_is_synced_while_it_is_written(tmp_path: Path, sizes: list[int]) -> None:
    """And one without syncs is not."""

    def pieces() -> Iterator[bytes]:
        return (bytes(10_000) for _ in range(50))

    Disk().write(tmp_path / "file", pieces())
    check_steps(sizes, tmp_path / "file", 10_000)
    sizes.clear()
    Disk().write(tmp_path / "file", pieces(), sync=False)
    Disk(fsync=False).write(tmp_path / "file", pieces())
    assert not sizes


def test_a_compacted_file_is_synced_while_it_is_written(tmp_path: Path, sizes: list[int]) -> None:
    """After each row group that makes a step full; the last one is its caller's."""
    sealed = []
    for number in range(2):
        path = tmp_path / f"{number}.parquet"
        rows = stored(1 + number * 150_000, 150_000)
        write_partition(rows, path, (1, 1))
        sealed.append(SealedFile(path, *msgspec.structs.astuple(describe(path, path.name, 0))))
    how = Merging(Disk(), 128_000_000, lambda: None)
    merge(sealed, tmp_path / "merged", "merged", how)
    assert len(sizes) >= 2
    assert sizes[-1] > (tmp_path / "merged").stat().st_size // 3


def test_a_directory_is_removed_in_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has gone is synced after each step, over several directories."""
    seen: list[int] = []
    monkeypatch.setattr(files, "STEP_BYTES", 100)
    disk = Disk()
    monkeypatch.setattr(disk, "sync_directory", lambda path: seen.append(len(list(path.parent.glob("*/*")))))
    for directory in ("first", "second"):
        (tmp_path / directory).mkdir()
        for number in range(3):
            (tmp_path / directory / str(number)).write_bytes(bytes(50))
    unsynced = remove_directory(disk, tmp_path / "first")
    assert (seen, unsynced) == ([4], 50)
    assert remove_directory(disk, tmp_path / "second", unsynced) == 0
    assert seen == [4, 2, 0]
    assert list(tmp_path.iterdir()) == []


def stored(first: int, count: int) -> pa.Table:
    """Records of one day, as they are stored."""
    seqs = np.arange(first, first + count)
    names = pa.array([f"{seq * 2_654_435_761 % (1 << 64):x}" for seq in seqs.tolist()])
    times = pa.array(seqs).cast(STORED.field("time").type)
    values = pa.array(seqs).cast(pa.decimal128(29, 0)).cast(STORED.field("value").type)
    same = pa.array(["positive"] * count)
    return pa.table([pa.array(seqs), names, times, same, same, same, values, same, names, times], schema=STORED)
