"""Coverage-guided fuzzing of one decoder: `python -m tests.support.fuzz TARGET SECONDS CORPUS`.

A decoder may refuse bytes with an `InputError`, and nothing else. What the fast paths make of them must be what the
exact path makes of them. The corpus directory is read and added to; what breaks a rule is left there as `crash-…`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["ingest"]):
    from ingest.csvs import csv_chunks
    from ingest.decode import Limits, decode_body, decode_single
    from ingest.formats import Compression, Format
    from ingest.jsons import json_chunks
    from ingest.ndjson import ndjson_chunks
    from ingest.record import Rules

import io
import json

import pyarrow as pa

from ingest.batch import Chunk
from store.errors import InputError
from store.journal import Position
from tests.support.batches import encoded

__all__ = ["TARGETS", "seeds"]

RULES = Rules(sources=frozenset({"source-a"}))
LIMITS = Limits(max_decompressed_bytes=1 << 20, max_ratio=100, chunk_bytes=4_096, chunk_rows=200)
RECORD = {
    "recordId": "rec-1", "time": "2024-03-01T12:00:00Z", "sourceId": "source-a", "destinationId": "dest-1",
    "type": "positive", "value": "1.5", "unit": "SEK", "reference": "r",
}  # fmt: skip
MANY = [{**RECORD, "recordId": f"many-{number}"} for number in range(70)]
"""Enough that the fast path is taken, with the fuzzed bytes among them."""

Facts = tuple[list[object], list[tuple[int, tuple[str, ...]]], int]


def facts(chunks: list[Chunk]) -> Facts:
    """What became of each record."""
    rows = [row for chunk in chunks for row in pa.Table.from_batches([chunk.records]).to_pylist()]
    rejects = [(r.index, tuple(error.code for error in r.errors)) for chunk in chunks for r in chunk.rejects]
    return rows, rejects, sum(chunk.received for chunk in chunks)


def both(read: Callable[..., object], data: bytes) -> None:
    """The fast and the exact path, which must agree, also in that they refuse."""
    found: list[object] = []
    for exact in (False, True):
        stream = io.BytesIO(data)
        try:
            found.append(facts(list(read(stream, RULES, Position(), chunk_bytes=4_096, chunk_rows=200, exact=exact))))  # type: ignore[call-overload]
        except InputError as error:
            found.append((error.code, str(error)))
    assert found[0] == found[1], found


def body(fmt: Format, compression: Compression = Compression.NONE) -> Callable[[bytes], None]:
    """A decoder of whole bodies."""

    def one(data: bytes) -> None:
        try:
            decode_body(data, fmt, compression, RULES, LIMITS)
        except InputError as error:
            assert error.code and str(error)

    return one


def single(data: bytes) -> None:
    """One JSON object."""
    try:
        decode_single(data, RULES)
    except InputError as error:
        assert error.code and str(error)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "single": single,
    "ndjson": lambda data: both(ndjson_chunks, encoded(MANY, "ndjson") + data),
    "json": lambda data: both(json_chunks, encoded(MANY, "json")[:-1] + b"," + data + b"]"),
    "csv": lambda data: both(csv_chunks, encoded(MANY, "csv") + data),
    "gzip": body(Format.NDJSON, Compression.GZIP),
    "zstd": body(Format.NDJSON, Compression.ZSTD),
    "parquet": body(Format.PARQUET),
    "arrow": body(Format.ARROW_STREAM),
}


def seeds(target: str) -> list[bytes]:
    """Where the search begins."""
    row = json.dumps(RECORD).encode()
    if target in ("gzip", "zstd"):
        return [encoded([RECORD], "ndjson", target)]
    if target in ("parquet", "arrow"):
        return [encoded([RECORD], "parquet" if target == "parquet" else name) for name in ("arrows", "arrow")]
    if target == "csv":
        return [encoded([RECORD], "csv").partition(b"\n")[2], b'"a""b","\r\n",,,,,,\n']
    return [row, row + b"\n" + row, b'{"value":1e5,"a":[{"b":"\\ud800"}]}', b"[1,{}]\r\n"]


def main() -> None:
    """Fuzz until the time is over."""
    target, seconds, corpus = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    for number, seed in enumerate(seeds(target)):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [
        f"-max_total_time={seconds}",
        "-max_len=2000",
        "-timeout=20",
        "-rss_limit_mb=2048",
        "-verbosity=0",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], str(corpus), f"-artifact_prefix={corpus}/", *options], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
