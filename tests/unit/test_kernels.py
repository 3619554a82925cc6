"""The loops in C do what their slower ways in Python do, to the byte, and touch nothing outside of their buffers."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from random import Random
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from outbox.messages import Previous, SingleUnit, notification_lines, previous_of_one_unit
from store import kernels, ranges, runs
from store.canonical import render_records
from store.fresh import columns_of
from store.hashing import Hasher
from store.plain import Row
from store.runs import Run, map_run
from store.schema import RECORD, TIME_MAX_US
from store.search import search
from store.sums import limbs
from tests.support.sanitized import LINES, mutations

ROOT = Path(__file__).parents[2]

letters = st.characters(codec="utf-8", exclude_categories=["Cs"])
texts = (
    st.text(letters, max_size=40) | st.text('"\\ab\x00\n\x7fé', max_size=9) | st.sampled_from(["", "b" * 8, "é" * 256])
)
units = st.integers(-(10**29) + 1, 10**29 - 1) | st.integers(-2_000, 2_000)
sums = st.integers(-(10**38) // 4, 10**38 // 4) | st.integers(-2_000, 2_000) | st.integers(-(2**70), 2**70)
times = st.integers(0, TIME_MAX_US - 1) | st.integers(0, 2 * 10**6)
rows = st.builds(
    lambda id_, time, source, destination, kind, value, unit, reference: (
        id_, time, source, destination, kind, decimal_of(value), unit, reference
    ),
    texts, times, texts, texts, st.sampled_from(["positive", "negative"]), units, texts, texts,
)  # fmt: skip


def decimal_of(value: int) -> Decimal:
    return Decimal((value < 0, tuple(map(int, str(abs(value)))), -9))


@contextmanager
def without_c() -> Iterator[None]:
    with patch.object(kernels, "_C", None):
        assert not kernels.available()
        yield


def test_the_library_is_built_where_the_tests_run() -> None:
    """Else everything below would compare Python with itself."""
    assert kernels.available(), "install a C compiler (on Debian: gcc libc6-dev), then make -B setup"


def test_what_was_built_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other structs, other rules: a library that was left behind must not be called."""
    (path,) = (ROOT / "store").glob("_kernels.*.so")
    kernels.load(path)
    monkeypatch.setattr(kernels, "_VERSION", kernels._VERSION + 1)
    with pytest.raises(OSError, match="another version"):
        kernels.load(path)


def test_a_changed_source_is_another_version() -> None:
    """Raise both numbers, in store/kernels.c and store/kernels.py, and put the digest of the source here."""
    source = (ROOT / "store" / "kernels.c").read_bytes()
    assert (kernels._VERSION, hashlib.sha256(source).hexdigest()[:16]) == (10, "0ff45c629db7f297")
    assert f"kernels_version(void) {{ return {kernels._VERSION}; }}".encode() in source


def table_of(records: list[Row], cut: int) -> pa.Table:
    """The records without the first `cut`: their columns do not begin where their buffers do."""
    table = columns_of(records).combine_chunks().slice(cut)
    assert table.schema == RECORD
    return table


@given(st.lists(rows, min_size=1, max_size=20), st.integers(0, 3), st.sampled_from([64, 3]))
@example([("x" * 5_000, 0, "", "", "positive", Decimal(0), "", "y" * 4_096)] * 2, 1, 64)
def test_hashes_are_those_of_the_columns(records: list[Row], cut: int, bits: int) -> None:
    """Of strings of every length, with the keys that begin anew beyond 2,040 bytes."""
    table, hasher = table_of(records, cut % len(records)), Hasher(b"seed", bits)
    found = [lane.tolist() for lane in hasher.hashes(table)]
    with without_c():
        assert found == [lane.tolist() for lane in hasher.hashes(table)]


@given(st.lists(rows, max_size=20), st.integers(0, 3))
def test_records_are_rendered_as_by_arrow(records: list[Row], cut: int) -> None:
    """With escapes and every value and time that a record may have."""
    table = table_of(records, cut % (len(records) or 1)) if records else RECORD.empty_table()
    found = render_records(table).to_pylist()
    with without_c():
        assert found == render_records(table).to_pylist()


summaries = st.tuples(st.integers(1, 2**62), times, times, st.integers(1, 2**62), texts, sums, sums)


@given(st.lists(summaries, min_size=1, max_size=20), st.integers(1, 2**62), st.data())
def test_notifications_are_rendered_as_by_arrow(found: list[tuple], first_seq: int, data: st.DataObject) -> None:
    """Sums of up to 38 digits; rows that share a summary."""
    count, first, last, last_seq, unit, positive, negative = zip(*found, strict=True)
    numbers = [np.array(column, np.int64) for column in (count, first, last, last_seq)]
    both = [limbs(pa.array(map(decimal_of, column), pa.decimal128(38, 9))) for column in (positive, negative)]
    summary = SingleUnit(*numbers, pa.array(unit, pa.string()), *both)
    place = np.array(data.draw(st.lists(st.integers(0, len(found) - 1), min_size=1, max_size=9)), np.int64)
    records = pa.array(["gone", *(f"<{row}>" * row for row in range(len(place)))]).slice(1)

    def lines() -> tuple[list[str], bytes]:
        previous = previous_of_one_unit(summary)
        return previous.to_pylist(), bytes(notification_lines(first_seq, "now", records, Previous(previous, place)))

    in_c = lines()
    with without_c():
        assert in_c == lines()


@settings(max_examples=300)
@given(st.integers(0, TIME_MAX_US - 1), st.integers(-1439, 1439))
def test_a_time_is_read_as_it_is_written(us: int, offset: int) -> None:
    """Every date, and every offset that leaves it in its range."""
    local = us + offset * 60_000_000
    if not 0 <= local < TIME_MAX_US:
        return
    text = pa.array([local], pa.timestamp("us")).cast(pa.string())[0].as_py().replace(" ", "T")
    sign, (hours, minutes) = "-" if offset < 0 else "+", divmod(abs(offset), 60)
    line = LINES[0].replace(b"2024-03-01T12:00:00.123456Z", f"{text}{sign}{hours:02}:{minutes:02}".encode())
    found = kernels.decode_lines(line, np.array([0]), np.array([len(line)]), longest=1 << 22, negative=False)
    assert found is not None
    assert found[0].column("time").cast(pa.int64()).to_pylist() == [us]


def test_an_array_that_is_too_large_for_arrow_is_left_to_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offsets have 32 bits: nothing may be written beyond what they can tell."""
    monkeypatch.setattr(kernels, "_MOST_BYTES", 100)
    table = columns_of([("a", 0, "b", "c", "positive", Decimal(1), "d", "e")])
    columns = [table.column(name).combine_chunks() for name in RECORD.names]
    strings = [columns[at] for at in (0, 2, 3, 4, 6, 7)]
    assert kernels.render_records(strings, columns[1], columns[5]) is None
    assert (
        kernels.decode_lines(LINES[0], np.array([0]), np.array([len(LINES[0])]), longest=1 << 22, negative=False)
        is None
    )
    assert render_records(table).to_pylist()[0].startswith('{"recordId":"a"')


hashes = st.integers(0, 2**64 - 1) | st.integers(0, 40) | st.integers(2**63 - 20, 2**63 + 20) | st.just(2**64 - 1)


@given(st.lists(hashes, max_size=60), st.integers(0, 2**64 - 1))
@example(list(range(3_000, 0, -1)), 2**20 - 1)
@example([7] * 3_000, 2**64 - 1)
def test_keys_are_sorted_as_by_numpy(found: list[int], mask: int) -> None:
    """Equal ones as they stand, also where the upper halves are all the same, or fall."""
    keys = np.array(found, np.uint64) & np.uint64(mask)
    assert kernels.argsort(keys).tolist() == np.argsort(keys, kind="stable").tolist()


@settings(max_examples=300)
@given(
    st.lists(st.tuples(hashes, st.integers(0, 2)), min_size=1, max_size=60),
    st.lists(st.tuples(hashes, st.integers(0, 2)), max_size=60),
    st.integers(1, 20),
)
def test_hashes_are_found_as_by_numpy(stored: list[tuple[int, int]], asked: list[tuple[int, int]], size: int) -> None:
    """On many pages, several rows with one hash among them, hashes that are far from uniform."""
    rows = pa.record_batch(
        [
            pa.array([hi for hi, _ in sorted(stored)], pa.uint64()),
            pa.array([lo for _, lo in sorted(stored)], pa.uint64()),
            pa.array(range(len(stored)), pa.uint64()),
        ],
        names=["hi", "lo", "row"],
    )
    needles = sorted(asked + stored[:3])
    hi, lo = (np.array(column, np.uint64) for column in zip(*needles, strict=True))

    def found(run: Run) -> list[tuple[int, int]]:
        rows = search([run], hi, lo)
        return sorted(zip(rows.needle.tolist(), rows.column("row").to_pylist() if len(rows) else [], strict=True))

    with tempfile.TemporaryDirectory() as folder, patch.object(ranges, "PAGE_ROWS", size):
        path = Path(folder) / "run.arrow"
        with pa.ipc.new_file(str(path), runs.schema_in_file(rows.schema)) as writer:
            for page in ranges._paged(rows):
                writer.write_batch(runs.with_filter(page))
        run = map_run(path, "run", rows.schema)
        in_c = found(run)
        assert in_c == sorted(
            (at, row) for at, needle in enumerate(needles) for row, pair in enumerate(sorted(stored)) if pair == needle
        )
        with without_c():
            assert in_c == found(run)


@given(st.lists(st.tuples(texts, st.integers()), max_size=20), st.randoms(), st.integers(0, 2))
def test_rows_are_taken_as_by_arrow(found: list[tuple[str, int]], random: Random, cut: int) -> None:
    """Some of them, in any order, several times."""
    table = pa.table([[text for text, _ in found], [float(number % 97) for _, number in found]], names=["a", "b"])
    table = table.cast(pa.schema([("a", pa.string()), ("b", pa.float64())])).slice(cut)
    order = np.array([random.randrange(table.num_rows) for _ in range(9)] if table.num_rows else [], np.int64)
    taken = kernels.taken(table, order)
    taken.validate(full=True)
    assert taken.equals(table.take(pa.array(order)))


def test_strings_of_each_length_are_copied_whole() -> None:
    """Short ones by moves of a fixed size, which differ from length to length; nothing beside them changes."""
    strings = [bytes(range(33, 33 + length)).decode() for length in range(80)]
    order = np.arange(80)[::-1].copy()
    taken = kernels.taken(pa.table({"text": pa.array(strings)}), order)
    assert taken.column("text").to_pylist() == strings[::-1]


@given(st.binary(max_size=40) | st.text("a\n", max_size=200).map(str.encode))
def test_lines_end_where_their_line_feeds_are(text: bytes) -> None:
    """Whatever else is there."""
    assert kernels.line_ends(text).tolist() == [at for at, byte in enumerate(text) if byte == 10]


def test_no_byte_outside_of_a_buffer_is_touched(tmp_path: Path) -> None:
    """Built with the sanitizers of addresses and of undefined behaviour, over lines with every byte changed."""
    compiler = shutil.which("gcc")
    assert compiler is not None
    library = tmp_path / "kernels.so"
    flags = ["-O1", "-g", "-shared", "-fPIC", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run([compiler, *flags, "-o", library, ROOT / "store" / "kernels.c"], check=True, timeout=120)
    runtime = subprocess.run(
        [compiler, "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
    ).stdout.strip()
    environment = {
        **os.environ,
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
    }
    command = [sys.executable, "-m", "tests.support.sanitized", str(library)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4_000:]
    assert int(done.stdout) > 3_000
    assert sum(1 for _ in mutations(LINES[0])) > 1_000
