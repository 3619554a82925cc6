"""Sample records: the same for the same seed, as asked for, and the same in every format."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ingest.decode import Limits, decode_file
from ingest.formats import by_file_name
from ingest.record import Rules
from service import generate as module
from service.cli import main
from service.generate import Sample, chunks
from store.schema import RECORD

ROWS = 20_000


def table(sample: Sample) -> pa.Table:
    return pa.concat_tables([RECORD.empty_table(), *chunks(sample)])


def decoded(path: Path) -> pa.Table:
    """The records of a file as the service takes them; none may be refused."""
    fmt, compression = by_file_name(path.name)
    pieces = list(decode_file(path, fmt, compression, Rules(), Limits()))
    assert [reject for piece in pieces for reject in piece.rejects] == []
    return pa.concat_tables([RECORD.empty_table(), *(pa.Table.from_batches([piece.records]) for piece in pieces)])


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few hundred records have seams between chunks."""
    monkeypatch.setattr(module, "_CHUNK", 100)


def test_the_same_seed_gives_the_same_records() -> None:
    """In another run and whatever the chunks; another seed gives others, with other ids."""
    sample = Sample(1_000, duplicates=0.1, conflicts=0.1)
    assert table(sample).equals(table(sample))
    other = table(replace(sample, seed=2))
    assert not set(other.column("recordId").to_pylist()) & set(table(sample).column("recordId").to_pylist())


def test_records_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record is a function of its number."""
    sample = Sample(1_000, duplicates=0.2, conflicts=0.1)
    whole = table(sample)
    monkeypatch.setattr(module, "_CHUNK", 7)
    assert table(sample).equals(whole)


def test_a_longer_run_begins_with_the_shorter_one() -> None:
    """And a run that begins further on has the records of that place."""
    assert table(Sample(500)).equals(table(Sample(1_000)).slice(0, 500))
    assert table(Sample(500, first=500)).equals(table(Sample(1_000)).slice(500))


def test_no_records_are_no_chunks() -> None:
    """An empty sample is one."""
    assert list(chunks(Sample(0))) == []


def test_records_are_distinct_where_no_others_are_asked_for() -> None:
    """As many ids as records."""
    assert len(set(table(Sample(ROWS)).column("recordId").to_pylist())) == ROWS


@pytest.mark.parametrize(("duplicates", "conflicts"), [(0.25, 0.0), (0.0, 0.25), (0.3, 0.2)])
def test_so_many_are_sent_again_and_so_many_changed(duplicates: float, conflicts: float) -> None:
    """Counted as the service counts them, one by one; within five standard deviations of what was asked for."""
    known: dict[str, object] = {}
    found: Counter[str] = Counter()
    for row in table(Sample(ROWS, duplicates=duplicates, conflicts=conflicts)).to_pylist():
        first = known.setdefault(row["recordId"], row)
        found["new" if first is row else "duplicate" if first == row else "conflict"] += 1
    for outcome, share in (("duplicate", duplicates), ("conflict", conflicts)):
        assert abs(found[outcome] - share * ROWS) <= 5 * (ROWS * share * (1 - share)) ** 0.5


def test_records_are_spread_over_what_was_asked_for() -> None:
    """So many destinations, references, sources and days, and each unit."""
    sample = Sample(ROWS, destinations=7, references=11, sources=3, units=("SEK", "kg"), days=2)
    found = table(sample)
    for name, count in (("destinationId", 7), ("reference", 11), ("sourceId", 3), ("unit", 2), ("type", 2)):
        assert len(set(found.column(name).to_pylist())) == count
    times = pc.min_max(found.column("time").cast(pa.int64())).as_py()
    assert sample.start_us <= times["min"] and times["max"] < sample.start_us + 2 * 86_400_000_000


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("count", [0, 1, 100, 350])
@pytest.mark.parametrize("fmt", ["ndjson", "json", "csv", "parquet", "arrows"])
def test_every_format_decodes_to_the_same_records(tmp_path: Path, fmt: str, count: int) -> None:
    """By the decoders of the service, across chunks, with units that must be quoted."""
    path = tmp_path / f"sample.{fmt}"
    options = ["--duplicates", "0.1", "--conflicts", "0.1", "--units", 'SEK,"öre"']
    assert main(["generate", str(count), "--format", fmt, "--output", str(path), *options]) == 0
    expected = table(Sample(count, duplicates=0.1, conflicts=0.1, units=("SEK", '"öre"')))
    assert decoded(path).to_pylist() == expected.to_pylist()


def test_standard_output_is_where_they_go_otherwise(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """The same bytes as into a file."""
    assert main(["generate", "3"]) == 0
    out = capsysbinary.readouterr().out
    sink = io.BytesIO()
    module._write(Sample(3), "ndjson", sink)
    assert out == sink.getvalue() and out.count(b"\n") == 3
