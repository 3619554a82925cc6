"""Merges in a process of their own: the same file, the same errors, and nothing of it outlives who wanted it."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from store import apart
from store.apart import Apart
from store.compaction import COMPACTION, CompactionSettings
from store.engine import Stop
from store.errors import CorruptionError
from store.files import Disk
from store.merging import Merging, merge
from store.parquet import describe, partitions, write_partition
from store.schema import STORED
from store.snapshot import SealedFile
from store.store import Store, StoreSettings
from store.verify import verify
from tests.support.direct import DAY_US, START_US, Direct, record_of
from tests.support.waiting import until

ROWS = 40_000
"""Two files of so many are worth a process."""


def on() -> None:
    """Goes on."""


def how(go_on: Callable[[], None] = on) -> Merging:
    return Merging(Disk(fsync=False), 128_000_000, go_on)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def sealed(directory: Path, number: int, rows: int = ROWS) -> SealedFile:
    first = number * rows + 1
    seqs = np.arange(first, first + rows)
    columns = {
        "seq": pa.array(seqs),
        "recordId": pa.array([f"r{seq}" for seq in seqs]),
        "time": pa.array(START_US + seqs, pa.int64()),
        "sourceId": pa.array(["s"] * rows),
        "destinationId": pa.array([f"d{seq % 7}" for seq in seqs]),
        "type": pa.array(["positive"] * rows),
        "value": pa.array(seqs),
        "unit": pa.array(["kg"] * rows),
        "reference": pa.array([f"{seq % 1_000}" for seq in seqs]),
        "processedAt": pa.array(np.full(rows, START_US), pa.int64()),
    }
    table = pa.table({field.name: columns[field.name].cast(field.type) for field in STORED})
    path = directory / f"{first:020d}-{first + rows - 1:020d}.parquet"
    (partition,) = partitions(table)
    write_partition(partition.rows(), path, (first, first + rows - 1))
    return SealedFile(path, *msgspec.structs.astuple(describe(path, path.name, START_US // DAY_US)))


@pytest.fixture
def files(tmp_path: Path) -> list[SealedFile]:
    return [sealed(tmp_path, number) for number in range(2)]


@pytest.fixture
def merging() -> Iterator[Apart]:
    made = Apart()
    yield made
    made.close()


def pid_of(merging: Apart) -> int:
    assert merging._process is not None
    return merging._process.pid


def test_it_makes_the_same_file_in_one_process_for_all(
    tmp_path: Path, files: list[SealedFile], merging: Apart, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte; what is small is merged here. It is ended where it was not needed for a while."""
    here = merge(files, tmp_path / "here", "made", how())
    small = [sealed(tmp_path, number, rows=10) for number in range(100, 102)]
    assert merging.merge(small, tmp_path / "small", "small", how()).rows == 20
    assert merging._process is None
    assert merging.merge(files, tmp_path / "there", "made", how()) == here
    first = pid_of(merging)
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()
    assert merging.merge(files, tmp_path / "again", "made", how()) == here
    merging.rest()
    assert pid_of(merging) == first and is_alive(first)
    monkeypatch.setattr(apart, "_KEPT_S", 0.0)
    merging.rest()
    assert merging._process is None and not is_alive(first)
    assert merging.merge(files, tmp_path / "third", "made", how()) == here


def test_errors_come_back_as_they_are(tmp_path: Path, files: list[SealedFile], merging: Apart) -> None:
    """Damage, and what the system says, with its number: a full disk is known by it. The process goes on."""
    with pytest.raises(FileNotFoundError) as missing:
        merging.merge(files, tmp_path / "none" / "file", "made", how())
    assert missing.value.errno == errno.ENOENT
    first = pid_of(merging)
    if Path("/dev/full").exists():
        with pytest.raises(OSError) as full:
            merging.merge(files, Path("/dev/full"), "made", how())
        assert full.value.errno == errno.ENOSPC
    data = bytearray(files[1].path.read_bytes())
    data[len(data) // 2] ^= 1
    files[1].path.write_bytes(data)
    with pytest.raises(CorruptionError, match="checksum"):
        merging.merge(files, tmp_path / "made", "made", how())
    assert pid_of(merging) == first


def test_a_merge_that_is_given_up_is_ended(tmp_path: Path, files: list[SealedFile], merging: Apart) -> None:
    """With its process, in the middle of what it writes."""
    stop = Stop()
    many = [sealed(tmp_path, number, rows=100_000) for number in range(10, 18)]
    found: list[int] = []

    def given_up() -> None:
        until((tmp_path / "made").exists)
        found.append(pid_of(merging))
        stop.set()

    stopping = threading.Thread(target=given_up)
    stopping.start()
    with pytest.raises(duckdb.InterruptException):
        merging.merge(many, tmp_path / "made", "made", how(stop.check))
    stopping.join()
    assert not is_alive(found[0])
    with pytest.raises(pa.ArrowInvalid):
        pq.read_metadata(tmp_path / "made")
    assert merging.merge(files, tmp_path / "made", "made", how()).rows == 2 * ROWS


def test_it_works_however_many_files_are_open(tmp_path: Path, files: list[SealedFile], merging: Apart) -> None:
    """A service with a thousand connections has handles above those that `select` knows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2_048), hard))
    with contextlib.ExitStack() as opened:
        for _ in range(1_100):
            opened.enter_context(Path("/dev/null").open("rb"))
        assert merging.merge(files, tmp_path / "made", "made", how()).rows == 2 * ROWS
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_process_that_cannot_begin_is_done_without(
    tmp_path: Path, files: list[SealedFile], merging: Apart, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the code was changed under a running service; it would end for every partition."""

    def broken(module: str, arguments: list[str], **pipes: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"], **pipes)

    monkeypatch.setattr(apart, "spawned", broken)
    assert merging.merge(files, tmp_path / "made", "made", how()).rows == 2 * ROWS


def test_where_no_process_can_be_started_it_is_merged_here(
    tmp_path: Path, files: list[SealedFile], merging: Apart, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it would be without."""

    def none_left(*arguments: object, **pipes: object) -> None:
        raise OSError(errno.EAGAIN, "no process left")

    monkeypatch.setattr(apart, "spawned", none_left)
    assert merging.merge(files, tmp_path / "made", "made", how()).rows == 2 * ROWS


def test_where_the_process_is_ended_the_partition_stays_as_it_is_for_an_hour(tmp_path: Path) -> None:
    """As by whatever ends processes that take much memory; nothing is lost, and it is said. `close` ends it too."""
    compaction = CompactionSettings(rest_s=0.0, grace_s=0.0)
    lake = Store(StoreSettings(tmp_path / "data", fsync=False, compaction=compaction))
    committer = Direct(lake)
    for first in (0, ROWS):
        committer.take([record_of(number, time=START_US) for number in range(first, first + ROWS)])
        lake.flush_once()
    merging = lake.compaction._apart
    compacted = tmp_path / "data" / COMPACTION

    def ended() -> None:
        until(lambda: any(compacted.glob("*/*.parquet")))
        os.kill(pid_of(merging), signal.SIGKILL)

    ending = threading.Thread(target=ended)
    ending.start()
    assert lake.compaction.run_once() == 0
    ending.join()
    assert merging._process is None
    assert lake.compaction.counters.failures == 1 and lake.failure is None
    assert [file.rows for file in lake.files] == [ROWS, ROWS]
    assert not any(compacted.iterdir())
    assert lake.compaction.run_once() == 0, "it was tried again at once"
    (until_s,) = set(lake.compaction._left_until.values())
    assert lake.compaction._idle_until == until_s and 3_500 < until_s - time.monotonic() < 3_600
    lake.compaction._left_until.clear()
    lake.compaction._idle_until = 0.0
    assert lake.compaction.run_once() == 1
    assert [file.rows for file in lake.files] == [2 * ROWS]
    pid = pid_of(merging)
    lake.close()
    assert not is_alive(pid)
    assert verify(lake.root).differences == []


def test_a_process_that_was_ended_meanwhile_is_begun_again(
    tmp_path: Path, files: list[SealedFile], merging: Apart
) -> None:
    """Nobody was waiting for it."""
    assert merging.merge(files, tmp_path / "made", "made", how()).rows == 2 * ROWS
    first = merging._process
    assert first is not None
    first.kill()
    until(lambda: first.poll() is not None)
    assert merging.merge(files, tmp_path / "made", "made", how()).rows == 2 * ROWS
    assert pid_of(merging) != first.pid


_PARENT = """
import sys
from pathlib import Path
import msgspec
from store.apart import Apart
from store.files import Disk
from store.merging import Merging
from store.snapshot import SealedFile
files = msgspec.json.decode(sys.stdin.read(), type=list[SealedFile], dec_hook=lambda kind, text: kind(text))
made = Apart()
made.merge(files[:2], Path(sys.argv[1] + ".first"), "first", Merging(Disk(fsync=False), 1_000_000, lambda: None))
print(made._process.pid, flush=True)
if len(files) > 2:
    made.merge(files, Path(sys.argv[1]), "made", Merging(Disk(fsync=False), 1_000_000, lambda: None))
sys.stdin = open("/dev/zero")
sys.stdin.read()
"""


@pytest.mark.parametrize("in_a_merge", [True, False])
def test_it_ends_with_who_started_it(tmp_path: Path, files: list[SealedFile], *, in_a_merge: bool) -> None:
    """`kill -9` of the service, in the middle of a merge or behind one: nothing goes on writing."""
    more = [sealed(tmp_path, number, rows=100_000) for number in range(10, 18)] if in_a_merge else []
    made = tmp_path / "made"
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, str(made)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdin is not None and parent.stdout is not None
    parent.stdin.write(msgspec.json.encode([*files, *more], enc_hook=str))
    parent.stdin.close()
    pid = int(parent.stdout.readline())
    if in_a_merge:
        until(made.exists)
    assert is_alive(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until(lambda: not is_alive(pid))
    if in_a_merge:
        with pytest.raises(pa.ArrowInvalid):
            pq.read_metadata(made)
