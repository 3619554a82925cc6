"""`oncelake generate`: sample records, as many as wanted, the same for the same seed.

A record is a function of the seed and its number, so that duplicates are made again instead of being remembered, and
100 million records need the memory of one chunk.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from store.arrays import U64
from store.canonical import json_strings, render_decimals, render_times
from store.errors import ConfigError
from store.limits import DAY_US
from store.schema import RECORD, TIME_MAX_US, UNIT_LIMIT
from store.sums import from_limbs
from store.times import parse_time

__all__ = ["Sample", "chunks", "generate"]

_CHUNK = 131_072
_GAMMA = np.uint64(0x9E3779B97F4A7C15)

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Sample:
    """What the records are like; see the options of the command."""

    count: int
    first: int = 0
    seed: int = 1
    duplicates: float = 0.0
    conflicts: float = 0.0
    destinations: int = 1_000
    references: int = 100_000
    sources: int = 20
    units: tuple[str, ...] = ("SEK",)
    start_us: int = 1_709_251_200_000_000
    days: int = 7


def generate(options: argparse.Namespace) -> int:
    """Write sample records to a file or to standard output."""
    start = parse_time(options.start_time)
    if not isinstance(start, int):
        raise ConfigError(f"--start-time is {options.start_time!r}; it must be RFC 3339 with an offset")
    _check(options, start)
    sample = Sample(
        options.count, options.first, options.seed, options.duplicates, options.conflicts, options.destinations,
        options.references, options.sources, tuple(options.units.split(",")), start, options.days,
    )  # fmt: skip
    if options.output is None:
        _write(sample, options.format, sys.stdout.buffer)
    else:
        with options.output.open("wb") as file:
            _write(sample, options.format, file)
    return 0


def _check(options: argparse.Namespace, start: int) -> None:
    """What would give no records, or none that are valid, is wrong usage."""
    for name in ("count", "first"):
        if getattr(options, name) < 0:
            raise ConfigError(f"{'N' if name == 'count' else '--first'} must not be negative")
    for name in ("destinations", "references", "sources", "days"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} must be 1 or more")
    again = options.duplicates + options.conflicts
    if not (options.duplicates >= 0 and options.conflicts >= 0 and again < 1):
        raise ConfigError("--duplicates and --conflicts must not be negative, and together below 1")
    if not all(0 < len(unit) <= UNIT_LIMIT for unit in options.units.split(",")):
        raise ConfigError(
            f"--units is {options.units!r}; it must be units of 1 to {UNIT_LIMIT} characters, with commas"
        )
    if start + options.days * DAY_US > TIME_MAX_US:
        raise ConfigError("--start-time and --days reach beyond the year 2200")


def chunks(sample: Sample) -> Iterator[pa.Table]:
    """The records in chunks, with the schema `RECORD`."""
    for begin in range(0, sample.count, _CHUNK):
        yield _records(sample, np.arange(begin, min(begin + _CHUNK, sample.count), dtype=np.uint64))


def _records(sample: Sample, places: U64) -> pa.Table:
    """The records at these places of the output: the next new one, or one from before, perhaps changed."""
    again, is_conflict = _again(sample, places)
    number = places.copy()
    rows = np.flatnonzero(again)
    while len(rows):  # back to a place that has a new record: one that is sent again itself was never sent as such
        number[rows] = _random(sample.seed, number[rows], 1) % number[rows]
        rows = rows[_again(sample, number[rows])[0]]
    number += np.uint64(sample.first)

    def draw(lane: int, below: int) -> np.ndarray:
        return (_random(sample.seed, number, lane) % np.uint64(below)).astype(np.int64)

    cents = draw(2, 1_200_000)
    cents[is_conflict] += 1
    scaled = np.zeros((len(number), 4), dtype=np.int64)
    scaled[:, 0] = cents * 10_000_000  # from_limbs carries
    units = pa.array(sample.units, pa.string())
    return pa.table(
        [
            _named(f"rec-{sample.seed}-", number.astype(np.int64)),
            pa.array(sample.start_us + draw(3, sample.days * DAY_US)).cast(RECORD.field("time").type),
            _named("source-", draw(4, sample.sources)),
            _named("dest-", draw(5, sample.destinations)),
            pa.array(["positive", "negative"]).take(pa.array(draw(6, 3) // 2)),
            from_limbs(scaled),
            units.take(pa.array(draw(7, len(sample.units)))),
            _named("invoice-", draw(8, sample.references)),
        ],
        schema=RECORD,
    )


def _again(sample: Sample, places: U64) -> tuple[Flags, Flags]:
    """At which places a record from before is sent again, and at which of those it is changed."""
    chance = _random(sample.seed, places, 0).astype(np.float64) / 2.0**64  # only how often; no value comes from it
    again = (chance < sample.duplicates + sample.conflicts) & (places > 0)
    return again, again & (chance >= sample.duplicates)


def _random(seed: int, numbers: U64, lane: int) -> U64:
    """SplitMix64 (Steele, Lea, Flood 2014) of a number, for each lane another one."""
    with np.errstate(over="ignore"):
        mixed = numbers * _GAMMA + np.uint64((seed * 0x632BE59BD9B4E019 + lane * 0xD1B54A32D192ED03) % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def _named(prefix: str, numbers: np.ndarray) -> pa.Array:
    return pc.binary_join_element_wise(prefix, pa.array(numbers).cast(pa.string()), "")


def _write(sample: Sample, form: str, sink: BinaryIO) -> None:
    if form in ("parquet", "arrows"):
        is_parquet = form == "parquet"
        opened = pq.ParquetWriter(sink, RECORD) if is_parquet else pa.ipc.new_stream(sink, RECORD)
        with opened as writer:
            for table in chunks(sample):
                writer.write_table(table)
    elif form == "csv":
        sink.write((",".join(RECORD.names) + "\n").encode())
        for table in chunks(sample):
            pcsv.write_csv(_texts(table), sink, pcsv.WriteOptions(include_header=False, quoting_style="needed"))
    else:
        _write_json(sample, sink, is_array=form == "json")


def _write_json(sample: Sample, sink: BinaryIO, *, is_array: bool) -> None:
    sink.write(b"[" if is_array else b"")
    between = ",\n" if is_array else "\n"
    is_first = True
    for table in chunks(sample):
        rows = _texts(table)
        pieces: list[object] = []
        for name in RECORD.names:
            text = rows.column(name).combine_chunks()
            quote = "" if name == "value" else '"'
            pieces += [f'{"," if pieces else "{"}"{name}":{quote}', json_strings(text), quote]
        lines = pc.binary_join_element_wise(*pieces, "}", "").to_pylist()
        sink.write(("" if is_first or not is_array else between).encode() + between.join(lines).encode())
        sink.write(b"" if is_array else b"\n")
        is_first = False
    sink.write(b"]\n" if is_array else b"")


def _texts(table: pa.Table) -> pa.Table:
    """All columns as texts in canonical form."""
    table = table.set_column(1, "time", render_times(table.column("time")))
    return table.set_column(5, "value", render_decimals(table.column("value")))
