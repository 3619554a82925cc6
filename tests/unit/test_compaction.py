"""Compaction: partitions of many files become few; the records, the answers and the promises stay."""

from __future__ import annotations

import errno
import os
import random
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from store import apart, merging, parquet
from store.choice import FULL_ROWS, choose, choose_partitions
from store.compaction import COMPACTION, CompactionSettings
from store.errors import DiskFullError
from store.files import Disk
from store.parquet import flush_of
from store.schema import STORED
from store.snapshot import SealedFile
from store.store import Store, StoreSettings
from store.verify import verify
from tests.support.direct import DAY_US, START_US, Direct, assert_holds, record_of
from tests.support.model import Model

DAYS = int(os.environ.get("ONCELAKE_TEST_DAYS", "200"))


def sealed(seq: int, rows: int, day: int = 0, size: int = 5_000) -> SealedFile:
    """A file of so many records, named by its seq."""
    name = f"records/{day}/{seq:020d}-{seq:020d}.parquet"
    return SealedFile(Path(name), name, day, rows, seq, seq, 0, 0, size, "")


def merged(files: list[SealedFile], chosen: list[SealedFile], seq: int) -> list[SealedFile]:
    """The files of a partition after a merge."""
    total = sealed(seq, sum(file.rows for file in chosen), size=sum(file.bytes for file in chosen) // 2)
    return [file for file in files if file not in chosen] + [total]


def test_a_growing_partition_keeps_few_files_and_rewrites_each_record_a_bounded_number_of_times() -> None:
    """Flushes of every size, compacted after each: at most 7 files of a class and 32 of the last; 6 rewrites."""
    for seed in range(5):
        chance = random.Random(seed)
        files: list[SealedFile] = []
        rewritten = total = most = 0
        for seq in range(1, 3_000):
            rows = int(8 ** (chance.random() * 5))
            total += rows
            files.append(sealed(seq, rows))
            while chosen := choose(files, rested=False):
                rewritten += sum(file.rows for file in chosen)
                files = merged(files, chosen, 10_000 + seq)
            most = max(most, sum(file.rows < FULL_ROWS for file in files))
        assert sum(file.rows for file in files) == total
        assert most <= 5 * 7 + 32
        assert rewritten <= 6 * total


def test_what_a_bulk_load_leaves_is_rewritten_once() -> None:
    """Its files wait until they are a full one together, also where compactions are behind: no merge is of more."""
    files: list[SealedFile] = []
    chance = random.Random(7)
    merges: list[list[SealedFile]] = []
    for seq in range(1, 401):
        files.append(sealed(seq, chance.randint(32_768, 65_536)))
        while (seq % 100 == 0 or seq < 200) and (chosen := choose(files, rested=False)):
            merges.append(chosen)
            files = merged(files, chosen, 10_000 + seq)
        assert len(files) - len(merges) < 32 or seq >= 200
    assert sum(file.rows for file in files if file.rows < FULL_ROWS) < FULL_ROWS
    assert len(merges) > 15
    for chosen in merges:
        assert all(file.min_seq < 10_000 for file in chosen), "a record was rewritten twice"
        assert FULL_ROWS <= sum(file.rows for file in chosen) < FULL_ROWS + 65_536


def test_a_rested_partition_is_brought_down_and_late_records_stay_cheap() -> None:
    """One late record a day beside 900,000: the large file is written again once in 225,000 records, not each day."""
    files = [sealed(1, 900_000)]
    rewritten = 0
    for seq in range(2, 2_000):
        files.append(sealed(seq, 1))
        while chosen := choose(files, rested=True):
            rewritten += sum(file.rows for file in chosen)
            files = merged(files, chosen, 10_000 + seq)
        assert len(files) <= 8
    assert max(files, key=lambda file: file.rows).rows == 900_000
    assert rewritten < 2_000 * 20


def test_what_is_large_stays_as_it_is() -> None:
    """Full files are never touched, by records or by bytes, and a merge is bounded."""
    assert choose([sealed(seq, FULL_ROWS) for seq in range(20)], rested=True) == []
    assert choose([sealed(seq, 100, size=64 << 20) for seq in range(20)], rested=True) == []
    chosen = choose([sealed(seq, FULL_ROWS - 1) for seq in range(20)], rested=True)
    assert len(chosen) == 2
    assert len(choose([sealed(seq, FULL_ROWS // 2, size=1 << 20) for seq in range(20)], rested=False)) == 2
    assert len(choose([sealed(seq, 40_000, size=8 << 20) for seq in range(20)], rested=False)) == 10
    assert len(choose([sealed(seq, 1) for seq in range(5_000)], rested=False)) == 128


def test_a_round_takes_the_partitions_that_save_most_and_not_too_many() -> None:
    """Those with most files first; at most 64; a partition with too many records for a round goes alone."""
    files = [sealed(seq, 1, day) for day in range(200) for seq in range(8 + day % 3)]
    chosen = choose_partitions(files, lambda day: False)
    assert [len(files) for files in chosen] == [10] * 64
    large = [sealed(seq, 100_000, day) for day in range(3) for seq in range(11)]
    assert len(choose_partitions(large, lambda day: False)) == 1
    assert choose_partitions(large[:7], lambda day: False) == []


class Compacted:
    """A store that compacts without waiting, beside its model."""

    def __init__(self, root: Path, disk: Disk | None = None, **settings: float | str) -> None:
        self.model = Model()
        self.root = root
        self.disk = disk
        self.settings = {"grace_s": 0.0, "rest_s": 1e9} | settings
        self.open()

    def open(self) -> None:
        compaction = CompactionSettings(**self.settings)  # type: ignore[arg-type]
        self.store = Store(
            StoreSettings(self.root, fsync=False, segment_bytes=2_000, compaction=compaction), disk=self.disk
        )
        self.committer = Direct(self.store)

    def flush(self, first: int, last: int, **changes: object) -> None:
        records = [record_of(number, **changes) for number in range(first, last)]
        self.committer.take(list(records))
        self.model.take(list(records))
        self.store.flush_once()

    def compact(self) -> int:
        rounds = 0
        while done := self.store.compaction.run_once():
            rounds += done
        return rounds

    def restart(self) -> None:
        self.store.close()
        self.open()

    def check(self) -> None:
        """Everything that is kept agrees with the model, also by `verify`."""
        assert_holds(self.store, self.model)
        report = verify(self.root)
        assert report.differences == []


def test_many_flushes_become_one_sorted_file_of_each_day(tmp_path: Path) -> None:
    """Many files of four days become four, sorted as a flush sorts, with the span of their flushes in the footer."""
    lake = Compacted(tmp_path / "data", rest_s=0.0)
    for number in range(24):
        lake.flush(number * 9, number * 9 + 9)
    before = lake.store.snapshot()
    assert lake.compact() >= 4
    after = lake.store.snapshot().files
    assert len(after) == 4
    for file in after:
        rows = pq.read_table(file.path, partitioning=None)
        assert rows.schema.equals(STORED)
        order = rows.select(["destinationId", "time", "seq"])
        assert order.equals(order.sort_by([(name, "ascending") for name in order.column_names]))
        first, last = flush_of(file.path)
        assert Path(file.name).name == f"{first:020d}-{last:020d}.{file.rows}.parquet"
        assert first <= file.min_seq < file.max_seq <= last
    assert sum(pq.read_metadata(file.path).num_rows for file in before.files) == 216
    lake.check()
    del before, rows, order
    lake.compact()
    assert {path.name for path in (tmp_path / "data/internal/links").iterdir()} == {file.path.name for file in after}
    lake.restart()
    lake.check()
    lake.store.close()


def test_late_records_and_merged_files_with_overlapping_seqs_survive_the_loss_of_the_catalog(tmp_path: Path) -> None:
    """The catalog is made anew from footers whose spans overlap, and everything is as before."""
    lake = Compacted(tmp_path / "data")
    for number in range(30):
        lake.flush(number * 3, number * 3 + 3)
        lake.compact()
    lake.flush(90, 91, time=START_US - 400 * DAY_US)
    files = {(file.name, file.rows, file.min_seq, file.max_seq, file.sum) for file in lake.store.snapshot().files}
    assert len(files) < 30
    lake.store.close()
    for path in (tmp_path / "data/internal").glob("catalog.sqlite*"):
        path.unlink()
    lake.open()
    found = {(file.name, file.rows, file.min_seq, file.max_seq, file.sum) for file in lake.store.snapshot().files}
    assert found == files
    lake.check()
    lake.store.close()


def test_a_retired_directory_stays_for_the_grace_period(tmp_path: Path) -> None:
    """Outside the glob; then it is removed, and a start removes it at once."""
    lake = Compacted(tmp_path / "data", grace_s=10.0)
    for number in range(8):
        lake.flush(number, number + 1, time=START_US)
    assert lake.store.compaction.run_once(100.0) == 1
    retired = [path for path in (tmp_path / "data" / COMPACTION).iterdir() if path.name.startswith("date=")]
    assert [len(list(path.iterdir())) for path in retired] == [8]
    lake.store.compaction.run_once(109.0)
    assert retired[0].exists()
    lake.store.compaction.run_once(111.0)
    assert not retired[0].exists()
    lake.store.close()


def test_a_partition_is_rested_when_it_got_no_file_for_a_while(tmp_path: Path) -> None:
    """Two files wait until then; a compaction does not make it wait again."""
    lake = Compacted(tmp_path / "data", rest_s=60.0)
    lake.flush(0, 1, time=START_US)
    lake.flush(1, 2, time=START_US)
    assert [lake.store.compaction.run_once(now) for now in (0.0, 59.0, 60.0, 61.0)] == [0, 0, 1, 0]
    lake.check()
    lake.store.close()


def test_a_flush_that_is_not_sealed_yet_is_kept_by_an_exchange(tmp_path: Path) -> None:
    """A file that is renamed and not in the catalog is linked into the new directory."""
    lake = Compacted(tmp_path / "data")
    for number in range(8):
        lake.flush(number, number + 1, time=START_US)
    seal = lake.store._catalog.seal

    def compact_first(*arguments: object) -> None:
        assert lake.store.compaction.run_once() == 1
        seal(*arguments)  # type: ignore[arg-type]

    lake.store._catalog.seal = compact_first  # type: ignore[method-assign, assignment]
    lake.flush(8, 9, time=START_US)
    lake.store._catalog.seal = seal  # type: ignore[method-assign]
    assert len(lake.store.snapshot().files) == 2
    lake.check()
    lake.restart()
    lake.check()
    lake.store.close()


def test_rot_is_not_copied_into_a_new_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file whose bytes are not those of the catalog is named, and its partition is left as it is."""
    lake = Compacted(tmp_path / "data")
    for number in range(8):
        lake.flush(number, number + 1, time=START_US)
    file = lake.store.snapshot().files[3]
    data = bytearray(file.path.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "data" / file.name).write_bytes(data)
    assert lake.compact() == 0
    assert file.name in caplog.text
    assert lake.store.compaction.counters.failures == 1
    assert len(lake.store.snapshot().files) == 8
    lake.store.close()


class Unable(Disk):
    """A file system that refuses one of the calls."""

    def __init__(self, call: str, code: int) -> None:
        super().__init__(fsync=False)
        self.call, self.code = call, code

    def exchange(self, first: Path, second: Path) -> None:
        """Refused or not."""
        if self.call == "exchange":
            raise OSError(self.code, "refused", str(first))
        super().exchange(first, second)

    def link(self, source: Path, target: Path) -> None:
        """Refused or not."""
        if self.call == "link":
            raise OSError(self.code, "refused", str(source))
        super().link(source, target)


@pytest.mark.parametrize(
    ("disk", "lacks"),
    [
        (Disk(fsync=False), None),
        (Unable("exchange", errno.EINVAL), "it cannot exchange two directories"),
        (Unable("link", errno.EOPNOTSUPP), "it has no hard links"),
    ],
)
def test_the_probe_tells_what_the_file_system_lacks(tmp_path: Path, disk: Disk, lacks: str | None) -> None:
    """Nothing, exchange or links; and nothing is left of it."""
    lake = Compacted(tmp_path / "data", disk)
    lake.flush(0, 3)
    found = lake.store.compaction.probe()
    assert (found or "").startswith(lacks or "")
    assert (found is None) == (lacks is None)
    assert list((tmp_path / "data" / COMPACTION).glob(".probe*")) == []
    lake.store.close()


def test_without_room_the_catalog_follows_in_the_next_round(tmp_path: Path) -> None:
    """An exchange that is made and not in the catalog yet is finished later; readers see no difference meanwhile."""
    lake = Compacted(tmp_path / "data")
    for number in range(8):
        lake.flush(number, number + 1, time=START_US)
    swapped = lake.store._catalog.swapped

    def full(swaps: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    lake.store._catalog.swapped = full  # type: ignore[method-assign, assignment]
    with pytest.raises(DiskFullError):
        lake.store.compaction.run_once()
    snapshot = lake.store.snapshot()
    assert sum(pq.read_metadata(file.path).num_rows for file in snapshot.files) == 8
    assert verify(tmp_path / "data").differences == []
    lake.flush(8, 9, time=START_US)
    lake.store._catalog.swapped = swapped  # type: ignore[method-assign]
    lake.compact()
    assert len(lake.store.snapshot().files) == 2
    lake.check()
    lake.store.close()


def test_trouble_in_a_merge_keeps_its_partition_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a lack of memory in Arrow: nobody waits for a compaction, and commits go on."""
    lake = Compacted(tmp_path / "data", rest_s=0.0)
    for number in range(8):
        lake.flush(number, number + 1, time=START_US)

    def partitions(table: pa.Table) -> object:
        raise pa.ArrowMemoryError("malloc of size 64 failed")

    with monkeypatch.context() as patch:
        patch.setattr(merging, "partitions", partitions)
        assert lake.compact() == 0
    assert "is not compacted until the next start: malloc of size 64 failed" in caplog.text
    assert lake.store.failure is None and lake.store.compaction.counters.failures == 1
    lake.flush(8, 9, time=START_US)
    lake.check()
    lake.store.close()


def test_a_directory_of_somebody_else_keeps_its_partition_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It cannot be linked; the other partitions are compacted, and this one after the next start without it."""
    lake = Compacted(tmp_path / "data", rest_s=0.0)
    for number in range(8):
        lake.flush(number, number + 1, time=START_US)
        lake.flush(100 + number, 101 + number, time=START_US + DAY_US)
    stray = (tmp_path / "data" / lake.store.files[0].name).parent / ".ipynb_checkpoints"
    stray.mkdir()
    assert lake.compact() == 1
    assert "is not compacted until the next start" in caplog.text and str(stray) in caplog.text
    assert lake.store.failure is None
    assert not [path for path in (tmp_path / "data" / COMPACTION).iterdir() if path.name.startswith("date=2024-03-01")]
    lake.check()
    stray.rmdir()
    lake.restart()
    assert lake.compact() == 1
    lake.check()
    lake.store.close()


def test_a_file_that_scatters_over_many_days_costs_some_rounds_of_small_merges(tmp_path: Path) -> None:
    """Twice one record in each day: rounds of 64 partitions, each record rewritten once, verify is clean."""
    lake = Compacted(tmp_path / "data", rest_s=0.0)
    for first in (0, DAYS):
        records = [record_of(number, time=START_US - number % DAYS * DAY_US) for number in range(first, first + DAYS)]
        lake.committer.take(list(records))
        lake.store.flush_once()
    assert lake.compact() == DAYS
    counters = lake.store.compaction.counters
    assert (counters.rounds, counters.rows, counters.files_out) == (-(-DAYS // 64), 2 * DAYS, DAYS)
    assert len(lake.store.files) == len(list((tmp_path / "data/records").rglob("*.parquet"))) == DAYS
    lake.restart()
    assert verify(tmp_path / "data").differences == []
    lake.store.close()


def test_many_records_are_merged_within_the_memory_that_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A range at a time, sorted the same way."""
    monkeypatch.setattr(parquet, "_ROW_GROUP_ROWS", 50_000)
    monkeypatch.setattr(apart, "_WORTH_ROWS", 100_000)  # a process of its own would not know of the line before
    lake = Compacted(tmp_path / "data", rest_s=0.0)
    lake.store.close()
    compaction = CompactionSettings(memory=1_000_000, rest_s=0.0, grace_s=0.0)
    lake.store = Store(StoreSettings(tmp_path / "data", fsync=False, compaction=compaction))
    lake.committer = Direct(lake.store)
    for first in (0, 35_000):
        records = [
            record_of(number, time=START_US + number, destinationId=f"d{number % 1_009}")
            for number in range(first, first + 35_000)
        ]
        lake.committer.take(list(records))
        lake.store.flush_once()
    assert lake.store.compaction.run_once() == 1
    (file,) = lake.store.files
    with pq.ParquetFile(file.path) as merged:
        groups = [merged.metadata.row_group(number).num_rows for number in range(merged.num_row_groups)]
        assert groups == [50_000, 20_000]
        rows = merged.read(["destinationId", "time", "seq"])
    assert rows.equals(rows.sort_by([(name, "ascending") for name in rows.column_names]))
    assert sorted(rows.column("seq").to_pylist()) == list(range(1, 70_001))
    assert lake.store.compaction.counters.failures == 0
    lake.store.close()


@pytest.mark.parametrize("rows", [3, 35_000])
def test_a_merge_under_way_is_given_up_at_a_stop(tmp_path: Path, rows: int) -> None:
    """Nothing is exchanged, nothing is left."""
    lake = Compacted(tmp_path / "data", rest_s=0.0)
    for first in (0, rows):
        lake.committer.take([record_of(number, time=START_US) for number in range(first, first + rows)])
        lake.store.flush_once()
    if rows == 3:
        lake.store.compaction.stop()
    else:
        threading.Timer(0.02, lake.store.compaction.stop).start()
    assert lake.compact() == 0
    assert [path.name for path in (tmp_path / "data" / COMPACTION).iterdir()] == []
    assert len(lake.store.files) == 2
    assert lake.store.compaction.counters.failures == 0
    lake.store.close()


def test_nothing_is_looked_at_again_before_a_flush_or_a_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large lake that rests costs nothing."""
    lake = Compacted(tmp_path / "data", rest_s=60.0)
    compaction = lake.store.compaction
    asked: list[int] = []
    choose_now = compaction._whole_files
    monkeypatch.setattr(compaction, "_whole_files", lambda: asked.append(1) or choose_now())
    for now, times in ((0.0, 1), (1.0, 1), (1e6, 1)):
        assert compaction.run_once(now) == 0
        assert len(asked) == times
    lake.flush(0, 1, time=START_US)
    for now, times in ((2e6, 2), (2e6 + 59, 2), (2e6 + 60, 3), (3e6, 3)):
        assert compaction.run_once(now) == 0
        assert len(asked) == times
    lake.store.close()
