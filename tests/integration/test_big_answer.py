"""Answers with every record of a large store: whole in every format, and in constant memory."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from service.generate import Sample, chunks
from store.parquet import describe, partitions, write_partition
from store.schema import STORED

ROOT = Path(__file__).parents[2]
ROWS = 5_000_000
FLUSH_ROWS = 500_000
MAX_ADDED_BYTES = 300_000_000


def large_store(root: Path) -> list[dict[str, object]]:
    """The Parquet of ten flushes, each cut into the partitions of seven days."""
    files: list[dict[str, object]] = []
    for first in range(0, ROWS, FLUSH_ROWS):
        records = pa.concat_tables(chunks(Sample(FLUSH_ROWS, first=first)))
        files += flushed(root, records, first + 1)
    return files


def flushed(root: Path, records: pa.Table, first: int) -> list[dict[str, object]]:
    seqs = pa.array(np.arange(first, first + records.num_rows))
    processed = pa.array(np.full(records.num_rows, 1_710_000_000_000_000 + first)).cast(STORED.field("time").type)
    columns = {"seq": seqs, **dict(zip(records.column_names, records.columns, strict=True)), "processedAt": processed}
    table = pa.table([columns[name] for name in STORED.names], schema=STORED)
    files = []
    for partition in partitions(table):
        path = root / f"{partition.day}-{first}.parquet"
        write_partition(partition.rows(), path, (first, first + records.num_rows - 1))
        row = describe(path, path.name, partition.day)
        names = ("name", "day", "rows", "min_seq", "max_seq", "bytes", "sum")
        files.append(
            {
                "path": str(path),
                "min_time_us": row.min_time,
                "max_time_us": row.max_time,
                **{name: getattr(row, name) for name in names},
            }
        )
    return files


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """Built once for all formats: its directory, and its files as JSON."""
    root = tmp_path_factory.mktemp("large")
    yield root, json.dumps(large_store(root))
    shutil.rmtree(root)


@pytest.fixture
def first_digest(tmp_path_factory: pytest.TempPathFactory, testrun_uid: str) -> Path:
    """Where the first format leaves the digest of its rows, in whichever worker it is asked."""
    return tmp_path_factory.getbasetemp().parent / f"digest-{testrun_uid}"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["json", "ndjson", "csv", "arrow", "parquet"])
def test_an_answer_with_five_million_records_is_whole_and_takes_constant_memory(
    store: tuple[Path, str], first_digest: Path, form: str
) -> None:
    """Every record once, the same rows and digits in every format, and less than 300 MB on top of the process."""
    root, files = store
    found = subprocess.run(
        [sys.executable, "-m", "tests.support.big_answer", str(ROWS), str(root), form],
        input=files, capture_output=True, text=True, cwd=ROOT, timeout=600,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    answer = json.loads(found.stdout)
    assert (answer["once"], answer["other"]) == (ROWS, 0)
    expected = duckdb.sql(
        f"SELECT (sum(value) * 1000000000)::HUGEINT FROM read_parquet('{root}/1*.parquet')"
    ).fetchall()
    assert expected == [(answer["sum"],)]
    mine = first_digest.with_name(f"{first_digest.name}-{form}")
    mine.write_text(answer["digest"])
    with contextlib.suppress(FileExistsError):
        first_digest.hardlink_to(mine)
    assert first_digest.read_text() == answer["digest"]
    assert answer["added"] < MAX_ADDED_BYTES
