"""Small valid stores, written by plain Python, one record at a time: a second implementation of the formats on disk.

Only the column types and the hash functions are shared with the service. Every step leaves a store that `verify` must
find in order; tests then damage it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from store.hashing import Hasher
from store.schema import STORED
from tests.support.model import Model, Stored, canonical_time

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY_US = 86_400_000_000
SEED = bytes(range(16))
START_US = 1_709_251_200_000_000  # 2024-03-01T00:00:00Z

INDEX = pa.schema([(name, pa.uint64()) for name in ("hi", "lo", "word", "fp")])
SUMMARIES = pa.schema([("hi", pa.uint64()), ("lo", pa.uint64()), ("summary", pa.binary())])
ROLLUPS = pa.schema(
    [
        ("hour", pa.int64()),
        ("destinationId", pa.string()),
        ("unit", pa.string()),
        ("positives", pa.int64()),
        ("negatives", pa.int64()),
        ("positive", pa.decimal128(38, 9)),
        ("negative", pa.decimal128(38, 9)),
    ]
)
SCHEMAS = {"index": INDEX, "summaries": SUMMARIES, "rollups": ROLLUPS}


def filter_of(rows: list[tuple[Any, ...]]) -> bytes:
    """The filter of a page with these rows (docs/formats.md, "Index runs")."""
    words = [0] * (len(rows) // 4)
    hashes = sorted(row[0] for row in rows)
    density = len(rows) / max(float(hashes[-1] - hashes[0]), 1.0)
    for hi, lo, *_ in rows if words else ():
        even = min(int(float(hi - hashes[0]) * density), len(rows) - 1)
        for shift in (0, 6, 12, 18, 24):
            words[min(even // 4, len(words) - 1)] |= 1 << (lo >> shift & 63)
    return struct.pack(f"<{len(words)}Q", *words).ljust(2 * len(rows), b"\0")


def packed(unit: str, count: int, positive: Decimal, negative: Decimal, first: int, last: int, last_seq: int) -> bytes:
    """What a run holds of a summary (docs/formats.md, "Summary runs")."""
    units = [int(Fraction(value) * 10**9) for value in (positive, negative)]
    sums = [2 * value if value >= 0 else -2 * value - 1 for value in units]
    numbers = [count, *sums, first, (last - first) % (1 << 64), last_seq]
    sizes = [-(-number.bit_length() // 8) for number in numbers]
    sizes = [16 if size == 15 else size for size in sizes]
    said = [min(size, 15) for size in sizes]
    header = bytes([len(unit.encode()), *(said[at] | said[at + 1] << 4 for at in (0, 2, 4))])
    return header + b"".join(map(int.to_bytes, numbers, sizes, ["little"] * 6)) + unit.encode()


def unpacked(row: bytes) -> tuple[str, int, Decimal, Decimal, int, int, int]:
    """The same, read."""
    said = [half for byte in row[1:4] for half in (byte & 15, byte >> 4)]
    numbers, at = [], 4
    for size in said:
        end = at + (16 if size == 15 else size)
        numbers.append(int.from_bytes(row[at:end], "little"))
        at = end
    count, *sums, first, span, last_seq = numbers
    positive, negative = (Decimal(f"{value // 2 if value % 2 == 0 else -(value // 2) - 1}E-9") for value in sums)
    assert len(row) == at + row[0]
    return row[at:].decode(), count, positive, negative, first, (first + span) % (1 << 64), last_seq


def sample(number: int) -> tuple[Any, ...]:
    """A record that is a function of its number: few keys, two units, several days, values that need escaping."""
    return (
        f'rec-{number}-"ö\\/',
        START_US + number * 7_919_000_017 % (3 * DAY_US),
        f"source-{number % 3}",
        f"dest-{number % 4}",
        "negative" if number % 3 == 0 else "positive",
        Decimal(number * 1_000_003 % 20_000) + Decimal(number % 5) / 10**9,
        "kg" if number % 7 == 0 else "SEK",
        f"invoice-{number % 5}",
    )


def checksum(data: bytes) -> str:
    """As it stands in journal and catalog."""
    return str(xxhash.xxh3_64_hexdigest(data))


def compact(value: Any) -> bytes:
    """JSON without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass
class StoreBuilder:
    """A store under construction at `root`. `segment_bytes` is where a log goes on in a new segment."""

    root: Path
    segment_bytes: int = 1 << 30
    hash_bits: int = 64
    model: Model = field(default_factory=Model)
    processed: list[int] = field(default_factory=list)
    flushed: int = 0
    number: int = 0
    digest: bytes = bytes(16)
    ends: dict[str, dict[str, Any]] = field(default_factory=dict)
    segments: list[dict[str, Any]] = field(default_factory=list)
    rules: list[dict[str, Any]] = field(default_factory=list)
    letters: int = 0

    def __post_init__(self) -> None:
        for name in ("outbox/notifications", "outbox/alerts", "rejected", "internal/journal", "internal/index"):
            (self.root / name).mkdir(parents=True)
        (self.root / "internal/summaries").mkdir()
        (self.root / "internal/rollups").mkdir()
        (self.root / "records").mkdir()
        self.hasher = Hasher(SEED, self.hash_bits)
        identity = {"format": 4, "storeId": "0" * 32, "seed": SEED.hex(), "hashBits": self.hash_bits}
        identity["sum"] = checksum(f"4 {'0' * 32} {SEED.hex()} {self.hash_bits}".encode())
        (self.root / "oncelake.json").write_bytes(compact(identity))
        self.journal = self.root / "internal/journal/0000000000.journal"
        checkpoint: dict[str, list[Any]] = {"segments": [], "rules": [], "inputs": [], "files": []}
        self._frame(0, 1, [], None, checkpoint)
        with self.database() as db:
            db.executescript(
                """
                CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
                CREATE TABLE files (name TEXT PRIMARY KEY, day INT, rows INT, min_seq INT, max_seq INT, min_time INT,
                    max_time INT, bytes INT, sum TEXT);
                CREATE TABLE runs (name TEXT PRIMARY KEY, kind TEXT, rows INT, min_seq INT, max_seq INT, bytes INT,
                    sum TEXT);
                CREATE TABLE intents (id INTEGER PRIMARY KEY, kind TEXT, body TEXT);
                """
            )
        self._meta()

    @property
    def seq(self) -> int:
        """The newest seq."""
        return len(self.model.stored)

    def database(self) -> sqlite3.Connection:
        """The catalog."""
        return sqlite3.connect(self.root / "internal/catalog.sqlite")

    def commit(self, records: list[tuple[Any, ...]], *, rules: dict[str, Any] | None = None, letters: int = 0) -> None:
        """One commit of new records; `rules` are in force from its first seq on."""
        first = self.seq + 1
        if not self.rules and rules is None:
            rules = {"threshold": "10000", "byUnit": {"kg": "5"}, "byDestination": {"dest-1": "15000.5"}}
        if rules is not None:
            self.rules.append({"firstSeq": first, "rules": rules})
        processed_us = START_US + 10 * DAY_US + self.number * 1_000_001
        processed = canonical_time(processed_us)
        notifications, alerts = b"", b""
        for record in records:
            assert self.model._accept(record) == self.seq
            stored = self.model.stored[-1]
            stored.threshold = self._threshold(stored)
            self.processed.append(processed_us)
            notifications += self.model.notification(stored, processed).encode() + b"\n"
            if stored.threshold is not None:
                alerts += self.model.alert(stored, processed).encode() + b"\n"
        dead = b"".join(self._letter() for _ in range(letters))
        self.number += 1
        files = []
        for log, name, data in (
            ("outbox/notifications", first, notifications),
            ("outbox/alerts", first, alerts),
            ("rejected", self.number, dead),
        ):
            if data:
                files.append(self._append(log, name, data))
        self._frame(processed_us, first, files, rules, None)
        self._tell()

    def _threshold(self, stored: Stored) -> str | None:
        rules = self.rules[-1]["rules"]
        threshold = rules["byUnit"].get(stored.record[6], rules["threshold"])
        threshold = rules["byDestination"].get(stored.record[3], threshold)
        return threshold if stored.record[5] > Decimal(threshold) else None

    def _letter(self) -> bytes:
        self.letters += 1
        return compact({"id": f"1-{self.letters}", "status": "rejected", "record": "{broken"}) + b"\n"

    def _append(self, log: str, name: int, data: bytes) -> dict[str, Any]:
        end = self.ends.get(log)
        if end is not None and end["end"] >= self.segment_bytes:
            feed = log.startswith("outbox")
            first = int(Path(end["path"]).stem) if feed else None
            last = name - 1 if feed else None
            self.segments.append(
                {"path": end["path"], "firstSeq": first, "lastSeq": last, "bytes": end["end"], "sum": end["sum"]}
            )
            end = None
        path = end["path"] if end else f"{log}/{name:020d}.jsonl"
        with (self.root / path).open("ab") as file:
            file.write(data)
        content = (self.root / path).read_bytes()
        self.ends[log] = {"path": path, "end": len(content), "sum": checksum(content)}
        return self.ends[log]

    def _frame(self, processed_us: int, first: int, files: list[dict[str, Any]], rules: Any, checkpoint: Any) -> None:
        payload = compact(
            {
                "number": self.number,
                "firstSeq": first,
                "lastSeq": self.seq,
                "processedAt": processed_us,
                "files": files,
                "inputs": [],
                "closed": [],
                "rules": rules,
                "checkpoint": checkpoint,
            }
        )
        frame = b"OLJ1" + len(payload).to_bytes(4, "little") + self.digest + payload
        self.digest = hashlib.blake2b(frame, digest_size=16).digest()
        with self.journal.open("ab") as file:
            file.write(frame + self.digest)

    def fold_journal(self) -> None:
        """Go on in a new journal file, which begins with a checkpoint."""
        old = self.journal
        self.number += 1
        self.journal = self.root / f"internal/journal/{self.number:010d}.journal"
        checkpoint = {
            "segments": self.segments,
            "rules": self.rules,
            "inputs": [],
            "files": list(self.ends.values()),
        }
        self._frame(self.processed[-1] if self.processed else 0, self.seq + 1, [], None, checkpoint)
        old.unlink()

    def _tell(self) -> None:
        for feed in ("notifications", "alerts"):
            (self.root / "outbox" / feed / "committed.json").write_bytes(compact({"seq": self.seq}))

    def flush(self) -> None:
        """Everything that is committed into Parquet, index and summaries."""
        first, last = self.flushed + 1, self.seq
        stem = f"{first:020d}-{last:020d}"
        fresh = self.model.stored[self.flushed :]
        days: dict[int, list[Stored]] = {}
        for stored in fresh:
            days.setdefault(stored.record[1] // DAY_US, []).append(stored)
        with self.database() as db:
            for day, members in days.items():
                name = f"records/date={(EPOCH + timedelta(days=day)).date()}/{stem}.parquet"
                self.write_parquet(name, members)
                self.enter_parquet(db, name)
            for kind, schema, rows in (
                ("index", INDEX, self.index_rows(fresh)),
                ("summaries", SUMMARIES, self.summary_rows(fresh)),
                ("rollups", ROLLUPS, self.rollup_rows(fresh)),
            ):
                self.write_run(db, f"internal/{kind}/{stem}.arrow", kind, schema, rows, (first, last))
        self.flushed = last
        self._meta()

    def write_parquet(self, name: str, members: list[Stored]) -> None:
        """A Parquet file of these records."""
        ordered = sorted(members, key=lambda s: (s.record[3], s.record[1], s.seq))
        rows = [dict(zip(STORED.names, (s.seq, *s.record, self.processed[s.seq - 1]), strict=True)) for s in ordered]
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=STORED), self.root / name, compression="zstd")

    def enter_parquet(self, db: sqlite3.Connection, name: str) -> None:
        """Enter a Parquet file in the catalog as it is."""
        data = (self.root / name).read_bytes()
        table = pq.read_table(self.root / name, partitioning=None)
        seqs = table.column("seq").to_pylist()
        times = table.column("time").cast(pa.int64()).to_pylist()
        row = (name, min(times) // DAY_US, len(seqs), min(seqs), max(seqs), min(times), max(times), len(data))
        db.execute("INSERT OR REPLACE INTO files VALUES (?,?,?,?,?,?,?,?,?)", (*row, checksum(data)))

    def index_rows(self, members: list[Stored]) -> list[tuple[Any, ...]]:
        """The index entries of these records, sorted."""
        rows = []
        for stored in members:
            table = pa.Table.from_pylist(
                [dict(zip(STORED.names, (stored.seq, *stored.record, 0), strict=True))], schema=STORED
            )
            hi, lo = self.hasher.identify(table.column("recordId").combine_chunks())
            word = (stored.record[1] // DAY_US << 47) | stored.seq
            rows.append((int(hi[0]), int(lo[0]), word, int(self.hasher.fingerprint(table)[0])))
        return sorted(rows)

    def summary_rows(self, members: list[Stored]) -> list[tuple[Any, ...]]:
        """The summary rows of these records, sorted."""
        sums: dict[tuple[int, int, bytes], list[Any]] = {}
        for stored in members:
            _, time, _, destination, type_, value, unit, reference = stored.record
            hi, lo = self.hasher.keys(pa.array([destination]), pa.array([reference]))
            key = (int(hi[0]), int(lo[0]), unit.encode())
            total = sums.setdefault(key, [0, Decimal(0), Decimal(0), time, time, 0])
            total[0] += 1
            total[1 if type_ == "positive" else 2] += value
            total[3:] = [min(total[3], time), max(total[4], time), stored.seq]
        return [(hi, lo, packed(unit.decode(), *sums[hi, lo, unit])) for hi, lo, unit in sorted(sums)]

    def rollup_rows(self, members: list[Stored]) -> list[tuple[Any, ...]]:
        """The rollup rows of these records, sorted."""
        sums: dict[tuple[int, bytes, bytes], list[Any]] = {}
        for stored in members:
            _, time, _, destination, type_, value, unit, _ = stored.record
            total = sums.setdefault(
                (time // 3_600_000_000, destination.encode(), unit.encode()), [0, 0, Decimal(0), Decimal(0)]
            )
            side = 0 if type_ == "positive" else 1
            total[side] += 1
            total[2 + side] += value
        return [
            (hour, destination.decode(), unit.decode(), *sums[hour, destination, unit])
            for hour, destination, unit in sorted(sums)
        ]

    def write_run(
        self,
        db: sqlite3.Connection,
        name: str,
        kind: str,
        schema: pa.Schema,
        rows: list[tuple[Any, ...]],
        seqs: tuple[int, int],
    ) -> None:
        """A run with these rows, entered in the catalog."""
        table = pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)
        if kind != "rollups":
            table = table.append_column("filter", pa.array(np.frombuffer(filter_of(rows), np.uint16)))
        with pa.OSFile(str(self.root / name), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        data = (self.root / name).read_bytes()
        db.execute(
            "INSERT OR REPLACE INTO runs VALUES (?,?,?,?,?,?,?)",
            (name, kind, len(rows), *seqs, len(data), checksum(data)),
        )

    def _meta(self) -> None:
        with self.database() as db:
            values = {"frame": str(self.number), "digest": self.digest.hex(), "flushed": str(self.flushed)}
            db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(values.items()))


def build(root: Path, **settings: Any) -> StoreBuilder:
    """A store with 60 flushed records in two flushes and 15 that only the log holds, alerts and dead letters."""
    builder = StoreBuilder(root, **settings)
    builder.commit([sample(number) for number in range(1, 21)], letters=2)
    builder.commit([sample(number) for number in range(21, 41)])
    builder.flush()
    builder.commit([], letters=1)
    builder.commit(
        [sample(number) for number in range(41, 61)],
        rules={"threshold": "500", "byUnit": {}, "byDestination": {"dest-2": "0"}},
    )
    builder.flush()
    builder.commit([sample(number) for number in range(61, 76)], letters=1)
    return builder
