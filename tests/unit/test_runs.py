"""Sorted runs: every row with a hash is found, whatever the hashes are and however they lie on pages."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import shutil
import sys
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from store import kernels, ranges, runs
from store.arrays import U64
from store.files import Disk
from store.flush import write_run
from store.index import INDEX_SCHEMA, entries, find, sorted_entries
from store.packed import NUMBERS, packed
from store.ranges import merge_ranges
from store.runs import HASHES, Run, filter_of, map_run
from store.search import search
from store.summaries import SUMMARY_RUN, merged
from tests import storebuilder
from tests.support.waiting import until

MOST = (1 << 64) - 1


def drawn(shape: str, rows: int, chance: np.random.Generator) -> U64:
    """Hashes as they are (uniform), and as nobody should ever see them."""
    if shape == "uniform":
        return chance.integers(0, MOST, rows, np.uint64, endpoint=True)
    if shape == "crowded":
        return np.uint64(1 << 63) + chance.integers(0, rows // 3 + 1, rows, np.uint64)
    if shape == "both ends":
        ends = chance.integers(0, 100, rows, np.uint64)
        return np.where(chance.random(rows) < 0.5, ends, np.uint64(MOST) - ends)
    steps = chance.integers(0, 64, rows, np.uint64)
    return np.uint64(MOST) >> steps


def run_of(hi: U64, lo: U64) -> Run:
    """Rows in memory; the word of each is where it stood."""
    return entries(hi, lo, np.arange(len(hi), dtype=np.uint64), lo)


def on_disk(directory: Path, pieces: list[Run]) -> Run:
    """The runs merged, in a file."""
    pages = merge_ranges(pieces, sorted_entries)
    write_run(Disk(fsync=False), directory / "run", "index", "run", pages, (0, 0))
    return map_run(directory / "run", "run", INDEX_SCHEMA)


@pytest.mark.parametrize("asked", [1, 40, 3_000])
@pytest.mark.parametrize("shape", ["uniform", "crowded", "both ends", "powers"])
def test_a_look_up_finds_every_row_with_the_hash_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str, asked: int
) -> None:
    """In one page in memory and in many of a file: the same as a dict."""
    monkeypatch.setattr(ranges, "PAGE_ROWS", 200)
    for seed in range(8):
        chance = np.random.Generator(np.random.Philox(seed))
        rows = int(chance.integers(1, 6_000))
        hi, lo = drawn(shape, rows, chance), chance.integers(0, 2, rows, np.uint64)
        rows_of: dict[tuple[int, int], list[int]] = {}
        for row, key in enumerate(zip(hi.tolist(), lo.tolist(), strict=True)):
            rows_of.setdefault(key, []).append(row)
        near = hi[chance.integers(0, rows, asked)] + chance.integers(0, 2, asked, np.uint64)
        questions = np.sort(np.where(chance.random(asked) < 0.8, near, drawn(shape, asked, chance)))
        other = chance.integers(0, 2, asked, np.uint64)
        keys = list(zip(questions.tolist(), other.tolist(), strict=True))
        wanted = sorted((number, row) for number, key in enumerate(keys) for row in rows_of.get(key, []))
        half = rows // 2
        both = [
            run_of(hi[:half], lo[:half]),
            entries(hi[half:], lo[half:], np.arange(half, rows, dtype=np.uint64), lo[half:]),
        ]
        disk = on_disk(tmp_path, both)
        assert shape != "uniform" or rows < 1_000 or len(disk.pages) > 3
        for found in (
            find([run_of(hi, lo)], questions, other),
            find([disk], questions, other),
            find(both, questions, other),
        ):
            assert sorted(zip(found.needle.tolist(), found.seq.tolist(), strict=True)) == wanted


@pytest.mark.parametrize("shape", ["uniform", "crowded", "both ends", "powers"])
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 7, 8, 3_001])
def test_a_filter_is_the_one_of_the_documents(monkeypatch: pytest.MonkeyPatch, shape: str, rows: int) -> None:
    """In C and without it, as a second implementation in plain Python has it: others read these files."""
    for seed in range(3):
        chance = np.random.Generator(np.random.Philox(seed))
        hi, lo = np.sort(drawn(shape, rows, chance)), drawn("uniform", rows, chance)
        wanted = storebuilder.filter_of(list(zip(hi.tolist(), lo.tolist(), strict=True)))
        assert filter_of(hi, lo).tobytes() == wanted
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "_C", None)
            assert filter_of(hi, lo).tobytes() == wanted


def test_of_new_hashes_few_pass_the_filter(tmp_path: Path) -> None:
    """1 in 230; the others are not sought: where the filter says that nothing is there, nothing is found."""
    chance = np.random.Generator(np.random.Philox(1))
    hi, lo = (drawn("uniform", 100_000, chance) for _ in range(2))
    run = on_disk(tmp_path, [run_of(hi, lo)])
    asked, other = np.sort(drawn("uniform", 50_000, chance)), drawn("uniform", 50_000, chance)
    words = filter_of(run.hi[0], run.lo[0]).view(np.uint64)
    even = (asked - run.hi[0][0]).astype(np.float64) * (100_000 / float(run.hi[0][-1] - run.hi[0][0]))
    word = words[np.clip(even.astype(np.int64), 0, 99_999) // 4]
    passes = np.all(
        [word >> (other >> np.uint64(shift) & np.uint64(63)) & np.uint64(1) for shift in (0, 6, 12, 18, 24)], 0
    )
    assert 0.0038 < np.mean(passes) < 0.0049
    data = (tmp_path / "run").read_bytes()
    bits = words.tobytes()
    assert data.count(bits) == 1
    (tmp_path / "none").write_bytes(data.replace(bits, bytes(len(bits))))
    nothing_passes = map_run(tmp_path / "none", "none", INDEX_SCHEMA)
    assert len(find([run], run.hi[0], run.lo[0]).needle) == 100_000
    assert len(find([nothing_passes], run.hi[0], run.lo[0]).needle) == 0


def test_gathered_filters_are_asked_in_the_place_of_those_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a run, and by a part of it: what the file says then is not read any more. Nothing of them has a name."""
    monkeypatch.setattr(ranges, "RANGE_ROWS", 100)
    chance = np.random.Generator(np.random.Philox(1))
    hi, lo = (drawn("uniform", 5_003, chance) for _ in range(2))
    on_disk(tmp_path, [run_of(hi, lo)])
    before, gathered = (map_run(tmp_path / "run", "run", INDEX_SCHEMA) for _ in range(2))
    assert len(before.pages) > 20
    assert len(find([gathered], before.hi[0], before.lo[0]).needle) == len(before.hi[0])
    gathered.gather_filters(Disk(), tmp_path)
    assert [found.tobytes() for found in gathered._filters] == [found.tobytes() for found in before._filters]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    places = sorted(found.ctypes.data for found in gathered._filters)
    assert all(place % 8 == 0 for place in places) and any(len(page) % 4 for page in before.pages)
    assert places[-1] - places[0] < 3 * 5_003
    middle = int(before.hi[7][0])
    with (tmp_path / "run").open("r+b") as file:
        base = pa.py_buffer(before._mapped).address
        for filter_ in before._filters:
            file.seek(filter_.ctypes.data - base)
            file.write(bytes(2 * len(filter_)))
    order = np.argsort(hi)
    assert len(find([before], hi[order], lo[order]).needle) < 500
    searched = gathered.searched
    for run, rows in ((gathered, 5_003), (gathered.part(middle, HASHES), int((hi >= middle).sum()))):
        assert len(find([run], hi[order], lo[order]).needle) == rows
    gathered.gather_filters(Disk(), tmp_path)
    assert gathered.searched is not searched, "a scrub makes the copies anew of what it has proven"
    assert len(find([gathered], hi[order], lo[order]).needle) < 500


def test_filters_that_cannot_be_gathered_are_read_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that becomes full, or has little room: nothing is left of the copy."""
    monkeypatch.setattr(ranges, "RANGE_ROWS", 100)
    chance = np.random.Generator(np.random.Philox(1))
    hi, lo = np.sort(drawn("uniform", 2_000, chance)), drawn("uniform", 2_000, chance)
    run = on_disk(tmp_path, [run_of(hi, lo)])
    own = run._filters

    class Full(Disk):
        """A file takes half of what is written."""

        def write(self, path: Path, data: Any, *, sync: bool = True) -> None:
            written = b"".join(data)
            super().write(path, written[: len(written) // 2], sync=sync)
            raise OSError(errno.ENOSPC, "no space left")

    run.gather_filters(Full(), tmp_path)
    assert run._filters is own
    with monkeypatch.context() as patch:
        patch.setattr(runs.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100_000, 90_000, 10_000))
        run.gather_filters(Disk(), tmp_path)
        assert run._filters is own
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert len(find([run], hi, lo).needle) == 2_000
    run.gather_filters(Disk(), tmp_path)
    assert run._filters is not own and "searched" in run.__dict__


def test_a_run_is_looked_into_while_its_filters_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By several threads, again and again: each hash is found each time."""
    monkeypatch.setattr(ranges, "RANGE_ROWS", 500)
    chance = np.random.Generator(np.random.Philox(1))
    hi, lo = np.sort(drawn("uniform", 20_000, chance)), drawn("uniform", 20_000, chance)
    run = on_disk(tmp_path, [run_of(hi, lo)])
    over = threading.Event()
    found: set[int] = set()

    def look() -> None:
        while not over.is_set():
            found.add(len(find([run], hi, lo).needle))

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(40):
        run.gather_filters(Disk(), tmp_path)
    over.set()
    for thread in threads:
        thread.join()
    assert found == {20_000}


@pytest.mark.parametrize("version", [2, 3])
def test_a_run_without_filters_is_searched_as_well(tmp_path: Path, version: int) -> None:
    """Format 2 wrote such, format 3 had others, which would say nothing right; beside one that has them."""
    chance = np.random.Generator(np.random.Philox(2))
    hi, lo = np.sort(drawn("uniform", 9_000, chance)), drawn("uniform", 9_000, chance)
    (page,) = run_of(hi[::2], lo[::2]).pages
    if version == 3:
        page = page.append_column(pa.field("filter", pa.uint8()), pa.array(np.zeros(len(page), np.uint8)))
    with pa.ipc.new_file(tmp_path / "old", page.schema) as writer:
        writer.write_batch(page)
    both = [map_run(tmp_path / "old", "old", INDEX_SCHEMA), on_disk(tmp_path, [run_of(hi[1::2], lo[1::2])])]
    assert sorted(find(both, hi, lo).needle.tolist()) == list(range(9_000))
    assert len(find(both, hi, lo ^ np.uint64(1)).needle) == 0


def test_an_empty_run_and_an_empty_question_find_nothing(tmp_path: Path) -> None:
    """Also of a file without a page."""
    some = np.array([5], np.uint64)
    nothing = some[:0]
    empty = on_disk(tmp_path, [])
    assert empty.rows == 0
    for each in (empty, Run([]), run_of(nothing, nothing)):
        assert len(find([each], some, some).needle) == 0
    assert len(find([run_of(some, some)], nothing, nothing).needle) == 0


def test_a_file_that_is_read_into_memory_is_refused(tmp_path: Path) -> None:
    """Compressed pages do not lie in the file as they are asked for."""
    page = pa.record_batch([pa.array(range(1_000), pa.uint64())] * 4, schema=INDEX_SCHEMA)
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(tmp_path / "run", INDEX_SCHEMA, options=options) as writer:
        writer.write_batch(page)
    with pytest.raises(pa.ArrowInvalid, match="do not lie in the file"):
        map_run(tmp_path / "run", "run", INDEX_SCHEMA)
    with pytest.raises(pa.ArrowInvalid, match="its columns are hi uint64, lo uint64, word uint64, fp uint64"):
        map_run(tmp_path / "run", "run", SUMMARY_RUN)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    """As one that was lost in a crash may be."""
    (tmp_path / "run").touch()
    with pytest.raises(pa.ArrowInvalid, match="it is empty"):
        map_run(tmp_path / "run", "run", INDEX_SCHEMA)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what it has in memory")
def test_mapping_a_run_reads_little_and_asking_ahead_reads_its_filters(tmp_path: Path) -> None:
    """Also where the system reads megabytes ahead: a start with an empty page cache read all runs from end to end."""
    rows = 1_500_000
    hi = np.sort(np.random.Generator(np.random.Philox(3)).integers(0, MOST, rows, np.uint64))
    written = on_disk(tmp_path, [run_of(hi, hi)])
    del written
    path = tmp_path / "run"
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if held(path).mean() > 0.1:
        pytest.skip("a file system that lives in memory")
    run = map_run(path, "run", INDEX_SCHEMA)
    assert held(path).mean() < 0.01
    run.read_here_and_there()
    run.ask_ahead()
    run.wait_for_ends()
    assert run.searched is run.searched
    base = pa.py_buffer(run._mapped).address
    filters = np.concatenate(
        [(column.ctypes.data - base + np.arange(0, column.nbytes, mmap.PAGESIZE)) for column in run._filters]
    )
    assert len(filters) > 600
    until(lambda: bool(held(path)[filters // mmap.PAGESIZE].all()))
    assert held(path).mean() < 0.1
    assert len(find([run], hi[:100], hi[:100]).seq) == 100


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how memory is read")
def test_what_look_ups_read_stays_in_memory(tmp_path: Path) -> None:
    """Linux drops first what is said to be read at random: only a start says so, and nothing that stays."""
    hi = np.arange(5_000, dtype=np.uint64) << np.uint64(50)
    on_disk(tmp_path, [run_of(hi, hi)])
    run = map_run(tmp_path / "run", "run", INDEX_SCHEMA)
    assert advised(tmp_path / "run") == [""]
    run.read_here_and_there()
    assert advised(tmp_path / "run") == ["rr"]
    run.touch()
    assert advised(tmp_path / "run") == [""]
    assert run.read_through() is run
    assert advised(tmp_path / "run") == ["sr"]


def advised(path: Path) -> list[str]:
    """How the system is told that each mapping of a file is read: at random, in order, or nothing."""
    found = []
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("VmFlags:"):
            found.append(" ".join(flag for flag in line.split()[1:] if flag in ("rr", "sr")))
    return found


def held(path: Path) -> npt.NDArray[np.bool_]:
    """Of each page of a file whether it is in memory."""
    with path.open("rb") as file, contextlib.closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as mapped:
        buffer = pa.py_buffer(mapped)
        found = np.zeros(-(-buffer.size // mmap.PAGESIZE), np.uint8)
        address, size, vector = map(ctypes.c_void_p, (buffer.address, buffer.size, found.ctypes.data))
        assert ctypes.CDLL(None).mincore(address, size, vector) == 0
        del buffer
    return (found & 1).astype(np.bool_)


@pytest.mark.parametrize("with_c", [True, False])
@pytest.mark.parametrize("asked", [1, 8, 700])
def test_rows_of_many_pages_are_those_that_arrow_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int, *, with_c: bool
) -> None:
    """Every column of the summaries, each unit of another length, in an order that no page has; of several runs."""
    monkeypatch.setattr(ranges, "PAGE_ROWS", 100)
    if not with_c:
        monkeypatch.setattr(kernels, "_C", None)
    for seed in range(5):
        chance = np.random.Generator(np.random.Philox(seed))
        given = [summaries_of(count, chance) for count in (3_000, 5_000, 10)]
        pages = merge_ranges([Run([given[0]])], merged)
        write_run(Disk(fsync=False), tmp_path / "run", "summaries", "run", pages, (0, 0))
        several = [
            Run([]),
            map_run(tmp_path / "run", "run", SUMMARY_RUN),
            *(Run([rows.slice(1)]) for rows in given[1:]),
        ]
        assert len(several[1].pages) > 20
        whole = pa.Table.from_batches([page for run in several for page in run.pages]).combine_chunks()
        asked_of = np.sort(chance.integers(0, whole.num_rows, asked))
        keys = whole.take(pa.array(asked_of)).sort_by("hi").combine_chunks()
        hi, lo = (keys.column(name).to_numpy() for name in ("hi", "lo"))
        found = search(several, hi, lo).in_order()
        assert found.needle.tolist() == list(range(asked))
        for name in SUMMARY_RUN.names:
            column = found.column(name)
            column.validate(full=True)
            assert column.equals(keys.column(name).chunk(0))


def test_a_damaged_run_is_an_error_and_no_other_memory(tmp_path: Path) -> None:
    """Offsets of strings that point elsewhere, in a file whose checksum nobody has looked at yet."""
    rows = summaries_of(100, np.random.Generator(np.random.Philox(1)))
    write_run(Disk(fsync=False), tmp_path / "run", "summaries", "run", [rows], (0, 0))
    data = bytearray((tmp_path / "run").read_bytes())
    offsets = np.frombuffer(rows.column("summary").buffers()[1], np.int32)[:101].tobytes()
    at = data.index(offsets)
    for damage in (1 << 30, -5):
        data[at + 200 : at + 204] = np.int32(damage).tobytes()
        (tmp_path / "run").write_bytes(data)
        run = map_run(tmp_path / "run", "run", SUMMARY_RUN)
        hi, lo = (rows.column(name).to_numpy() for name in ("hi", "lo"))
        with pytest.raises(pa.ArrowInvalid, match="do not lie where its offsets say"):
            search([run], hi, lo).column("summary")


def summaries_of(count: int, chance: np.random.Generator) -> pa.RecordBatch:
    """Rows of summaries, no key twice, with sums of all 38 digits and units of one to four bytes a character."""
    hi = np.sort(chance.integers(0, MOST, count, np.uint64, endpoint=True))
    digits = [int("".join(map(str, chance.integers(0, 10, 29)))) for _ in range(count)]
    sums = pa.array([Decimal(f"{'-' if number % 3 else ''}{number}.123456789") for number in digits])
    units = [("kg", "€", "𝄞" * 3, "a unit that is long")[number % 4] for number in digits]
    times = chance.integers(-(1 << 60), 1 << 60, count)
    counts = chance.integers(1, 1 << 62, count)
    positive = sums.cast(NUMBERS["positive"])
    numbers = [pa.array(counts), positive, positive[::-1], *map(pa.array, (times, times + 1, counts + 1))]
    return pa.record_batch([hi, hi ^ np.uint64(5), packed(pa.array(units), numbers)], schema=SUMMARY_RUN)
