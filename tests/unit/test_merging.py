"""Merging Parquet files: the same records in their order, within the memory that is given, and nothing damaged."""

from __future__ import annotations

import shutil
from decimal import Decimal
from pathlib import Path
from random import Random

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from store import merging, parquet
from store.errors import CorruptionError
from store.files import Disk
from store.memory import bytes_of
from store.merging import Merging, merge
from store.parquet import describe, flush_of, partitions, write_partition
from store.schema import STORED
from store.snapshot import SealedFile
from tests.support.direct import START_US

ORDER = [(name, "ascending") for name in ("destinationId", "time", "seq")]


def records(draw: Random, first: int, count: int, destinations: list[str]) -> pa.Table:
    """Sorted, as a flush writes them."""
    seqs = list(range(first, first + count))
    columns = {
        "seq": seqs,
        "recordId": [f"r{seq}" for seq in seqs],
        "time": [START_US + draw.randrange(50) for _ in seqs],
        "sourceId": draw.choices(["s", "t"], k=count),
        "destinationId": draw.choices(destinations, k=count),
        "type": draw.choices(["positive", "negative"], k=count),
        "value": [Decimal(draw.randrange(10**28)).scaleb(-9) for _ in seqs],
        "unit": draw.choices(["kg", "SEK"], k=count),
        "reference": [f"{draw.randrange(10**9)}" for _ in seqs],
        "processedAt": [START_US + seq // 100 for seq in seqs],
    }
    (partition,) = partitions(pa.table({name: pa.array(columns[name], STORED.field(name).type) for name in columns}))
    return partition.rows()


def sealed(path: Path, rows: pa.Table, span: tuple[int, int]) -> SealedFile:
    write_partition(rows, path, span)
    return SealedFile(path, *msgspec.structs.astuple(describe(path, path.name, START_US // 86_400_000_000)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("least", [1, 7, 1_024])
def test_files_of_all_sizes_become_one_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, least: int
) -> None:
    """Also where they hold different destinations, one after another or mixed, or a single record."""
    monkeypatch.setattr(merging, "_LEAST_ROWS", least)
    draw = Random(seed)
    files, tables, first = [], [], 1
    for number in range(draw.randrange(2, 9)):
        count = draw.choice([1, 30, 200])
        names = [f"d{number}"] if seed == 3 else draw.choices(["", "a", "B", "é", "ab", "\U0001f600"], k=4)
        tables.append(records(draw, first, count, names))
        files.append(sealed(tmp_path / f"{number}.parquet", tables[-1], (first, first + count - 1)))
        first += count
    draw.shuffle(files)
    row = merge(files, tmp_path / "merged", "merged", Merging(Disk(), 1, lambda: None))
    with pq.ParquetFile(tmp_path / "merged") as parquet:
        found = parquet.read()
    expected = pa.concat_tables(tables)
    encoded = expected.set_column(4, "destinationId", expected.column("destinationId").cast(pa.binary()))
    assert found.equals(expected.take(pa.compute.sort_indices(encoded, ORDER)).cast(found.schema))
    assert row == describe(tmp_path / "merged", "merged", row.day)
    assert flush_of(tmp_path / "merged") == (1, first - 1)


def test_what_differs_is_no_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that is lost, twice, or has another field or seq on its way is seen when the file is read back."""
    draw = Random(1)
    files = [sealed(tmp_path / f"{at}.parquet", records(draw, at, 50, ["a", "b"]), (at, at + 49)) for at in (1, 51)]
    merged = merging._merged

    def changed(change: int) -> None:
        def other(*arguments: object) -> object:
            rows = pa.concat_tables(merged(*arguments))  # type: ignore[arg-type]
            seqs = rows.column("seq").to_pylist()
            swapped = [seqs[1], seqs[0], *seqs[2:]]
            times = rows.column("processedAt").to_pylist()
            others = {
                1: rows.slice(1),
                2: pa.concat_tables([rows.slice(0, 1), rows.slice(0, 1), rows.slice(2)]),
                3: rows.set_column(7, "unit", pa.array(["t"] * 100)),
                4: rows.set_column(0, "seq", pa.array(swapped)),
                5: rows.set_column(9, "processedAt", pa.array([*times[99:], *times[:99]], STORED.field(9).type)),
            }
            yield others[change].cast(STORED)

        monkeypatch.setattr(merging, "_merged", other)
        with pytest.raises(CorruptionError, match="the files that it stands for hold"):
            merge(files, tmp_path / "merged", "merged", Merging(Disk(), 1 << 20, lambda: None))

    for change in range(1, 6):
        changed(change)


def test_a_file_that_is_not_sorted_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is nobody's but a stranger's; the merge ends."""
    monkeypatch.setattr(merging, "_LEAST_ROWS", 10)
    rows = records(Random(1), 1, 100, ["a", "b", "c"])
    files = [
        sealed(tmp_path / "1.parquet", rows.take(list(range(99, -1, -1))), (1, 100)),
        sealed(tmp_path / "2.parquet", records(Random(1), 101, 100, ["c"]), (101, 200)),
    ]
    with pytest.raises(CorruptionError, match=r"one of 1\.parquet, 2\.parquet is not sorted"):
        merge(files, tmp_path / "merged", "merged", Merging(Disk(), 1, lambda: None))


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    """As one whose bytes are others."""
    file = sealed(tmp_path / "1.parquet", records(Random(1), 1, 10, ["a"]), (1, 10))
    gone = sealed(tmp_path / "2.parquet", records(Random(1), 11, 10, ["a"]), (11, 20))
    shutil.copy(file.path, gone.path)
    with pytest.raises(CorruptionError, match=r"2\.parquet has .* the catalog says"):
        merge([file, gone], tmp_path / "merged", "merged", Merging(Disk(), 1, lambda: None))
    gone.path.unlink()
    with pytest.raises(CorruptionError, match=r"2\.parquet cannot be read"):
        merge([file, gone], tmp_path / "merged", "merged", Merging(Disk(), 1, lambda: None))


def test_a_file_is_not_held_in_memory_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file with many row groups those that are not asked for yet are left where they are."""
    monkeypatch.setattr(parquet, "_ROW_GROUP_ROWS", 10_000)
    row = sealed(tmp_path / "1.parquet", records(Random(1), 1, 100_000, ["a", "b"]), (1, 100_000))
    before = most = pa.total_allocated_bytes()
    for _ in merging._stored(row.path, 1_024):
        most = max(most, pa.total_allocated_bytes())
    assert most - before < row.bytes / 2


def test_only_what_repeats_has_a_dictionary(tmp_path: Path) -> None:
    """References that are nearly all different are written as they are, which takes a third of the time."""
    rows = records(Random(1), 1, 20_000, ["a", "b"])
    for references, encoded in ((rows.column("reference"), False), (pa.array(["x", "y"] * 10_000), True)):
        write_partition(rows.set_column(8, "reference", references), tmp_path / "file", (1, 20_000))
        group = pq.ParquetFile(tmp_path / "file").metadata.row_group(0)
        has = {group.column(at).path_in_schema: group.column(at).has_dictionary_page for at in range(10)}
        assert has["destinationId"] and has["type"] and has["processedAt"]
        assert has["reference"] is encoded
        assert not has["recordId"]


@pytest.mark.parametrize(
    ("amount", "size"),
    [("192MB", 192_000_000), ("1.5 GiB", 3 << 29), ("64kib", 65_536), ("2tb", 2 * 10**12), ("0.5 KB", 500)],
)
def test_amounts_of_memory(amount: str, size: int) -> None:
    """As DuckDB reads them."""
    assert bytes_of(amount) == size
