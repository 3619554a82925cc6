"""Proof that everything on disk agrees: outboxes, Parquet, index, summaries, rollups, catalog.

Nothing is shared with the code that writes a store but the column types and the hash functions: the readers are those
of `store.verification`, and the lines that must be in the outboxes are made by SQL (`store.messages_sql`) from the
Parquet rows. A notification line that is equal to the byte proves the record in it, the row that it was made from and
every record before it under the same key at once.

It only reads, works beside a running service and straight after a kill, and needs memory for one range of seqs.
"""

# ruff: noqa: S608 - statements are put together from names and numbers of this package only; values are bound

from __future__ import annotations

import itertools
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from store.errors import CorruptionError, StoreVersionError
from store.hashing import Hasher
from store.holding import Holding
from store.messages_sql import HISTORY_OF_SUMMARIES, alert_lines, load_rules, notification_lines
from store.schema import FORMAT_VERSION, STORED
from store.verification.derived import Derived
from store.verification.feeds import Feed
from store.verification.letters import check_letters
from store.verification.records import ParquetRecords, read_lines
from store.verification.report import Difference, Findings, Report, VanishedError
from store.verification.rollups import Rollups
from store.verification.survey import Survey, check_facts, take_survey

__all__ = ["Difference", "Report", "verify"]

_RANGE_ROWS = 250_000
"""Records that are looked at together; about 500 bytes each in memory."""

_WITHOUT_ROLLUPS = 1
"""The format of a directory that was not started since there are any."""

_TRIES = 5
"""Whole runs, where files go away under the reader: compactions are rare, and never follow each other closely."""


def verify(data_dir: Path, *, memory_limit: str = "1GB", temp_dir: Path | None = None) -> Report:
    """Read everything below `data_dir` and report every difference.

    DuckDB keeps to `memory_limit` and spills into `temp_dir` (the system's by default), which takes up to about the
    size of the records. Nothing is written into `data_dir`.
    """
    started = time.monotonic()
    data_dir = data_dir.absolute()
    hasher = _hasher(data_dir)
    for attempt in range(_TRIES):
        findings = Findings()
        with tempfile.TemporaryDirectory(prefix="oncelake-verify-", dir=temp_dir) as scratch:
            try:
                run = _Run(data_dir, Path(scratch), hasher, findings, memory_limit)
                try:
                    run.everything()
                finally:
                    run.connection.close()
                    run.holding.close()
                break
            except VanishedError as error:
                if attempt + 1 == _TRIES:
                    findings.add("store", "", f"files go away while they are read: {error}")
    return Report(
        as_of=run.seq,
        flushed_seq=run.flushed,
        checked=findings.checked,
        differences=findings.differences,
        truncated=findings.found > len(findings.differences),
        seconds=time.monotonic() - started,
    )


def _hasher(root: Path) -> Hasher:
    path = root / "oncelake.json"
    try:
        identity = json.loads(path.read_bytes())
        if identity["format"] > FORMAT_VERSION:
            raise StoreVersionError(
                f"{path} says format {identity['format']}; this oncelake knows formats up to {FORMAT_VERSION}"
            )
        bits = identity.get("hashBits", 64)
        told = f"{identity['format']} {identity['storeId']} {identity['seed']} {bits}"
        has_sum = identity["format"] > 1 or identity.get("sum")
        if identity["format"] < 1 or (has_sum and identity["sum"] != xxhash.xxh3_64_hexdigest(told.encode())):
            raise ValueError("its checksum is not that of its contents")
        return Hasher(bytes.fromhex(identity["seed"]), bits)
    except FileNotFoundError:
        raise CorruptionError(f"{path} is missing: {root} is no data directory of oncelake") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptionError(f"{path} is damaged ({error!r}): restore it from a backup") from error


@dataclass
class _Range:
    first: int
    last: int
    flushed: bool


class _Run:
    """One pass over a surveyed store."""

    def __init__(self, root: Path, scratch: Path, hasher: Hasher, findings: Findings, memory_limit: str) -> None:
        self.connection = duckdb.connect(scratch / "verify.duckdb")
        self.holding = Holding(root)
        self.seq = self.flushed = 0
        self._root = root
        self._scratch = scratch
        self._hasher = hasher
        self._has_rollups = json.loads((root / "oncelake.json").read_bytes())["format"] > _WITHOUT_ROLLUPS
        self._findings = findings
        self.connection.execute(f"SET temp_directory = '{str(scratch / 'spill').replace(chr(39), chr(39) * 2)}'")
        self.connection.execute("SET memory_limit = $1", [memory_limit])
        self.connection.execute("SET preserve_insertion_order = false")

    def everything(self) -> None:
        """Survey, then records and feeds range by range, then what is derived from them."""
        survey = take_survey(self._root, self._scratch, self._findings, self.holding)
        self.seq = survey.commits.seq
        self._parquet = self._open_parquet(survey)
        if survey.catalog is not None:
            self.flushed = min(survey.catalog.flushed, self.seq)
        else:
            self.flushed = self._parquet.dense_to(self.seq)
        logs = survey.commits.logs
        self._notifications = self._feed("notification", survey)
        self._alerts = self._feed("alert", survey)
        self._derived = Derived(self.connection, self._scratch, self._hasher, (self.seq, self.flushed), self._findings)
        self._rollups = Rollups(self.connection, self.flushed, self._findings)
        load_rules(self.connection, survey.commits.rules)
        ranges = _ranges(self.seq, self.flushed, [file.first for file in logs["outbox/notifications"]])
        self._parquet.prepare([(piece.first, piece.last) for piece in ranges if piece.flushed])
        for piece in ranges:
            self._check_range(piece)
        self._notifications.finish()
        self._alerts.finish()
        if survey.catalog is not None:
            self._derived.check_index([run for run in survey.runs if run.row.kind == "index"])
            self._derived.check_summaries([run for run in survey.runs if run.row.kind == "summaries"])
            if self._has_rollups:
                self._rollups.check([run for run in survey.runs if run.row.kind == "rollups"])
        self._derived.check_ids(self._parquet.record_ids)
        letters = [file for file in logs["rejected"] if file.path not in survey.gone]
        check_letters(self.connection, self._root, letters, self._findings)

    def _feed(self, kind: str, survey: Survey) -> Feed:
        log = f"outbox/{kind}s"
        floor = survey.commits.kept.get(log, 1)
        return Feed(self._root, kind, survey.commits.logs[log], survey.gone, floor, self._findings)

    def _open_parquet(self, survey: Survey) -> ParquetRecords:
        parquet = ParquetRecords(self.connection, self.holding, survey.files, self._findings)
        for name in sorted(survey.damaged & set(parquet.facts)):
            parquet.probe(name)
        for row in survey.catalog.files if survey.catalog else ():
            facts = parquet.facts.get(row.name)
            if facts is not None and row.name not in survey.damaged:
                held = (facts.rows, facts.min_seq, facts.max_seq, facts.min_time, facts.max_time)
                check_facts(row, held, self._findings)
        for facts in parquet.facts.values():
            if facts.min_seq < 1 or facts.max_seq > self.seq:
                message = f"holds seqs {facts.min_seq} to {facts.max_seq}, committed are 1 to {self.seq}"
                self._findings.add("parquet", facts.name, message, seq=facts.max_seq)
        return parquet

    def _check_range(self, piece: _Range) -> None:
        rows = self._flushed_rows(piece) if piece.flushed else self._hot_rows(piece)
        self._findings.checked["records"] += rows.num_rows
        if not rows.num_rows:
            return
        self.connection.register("records", rows)
        self.connection.execute(f"CREATE OR REPLACE TEMP TABLE history AS {HISTORY_OF_SUMMARIES}")
        for batch in notification_lines(self.connection):
            self._notifications.compare(batch.column(0).to_numpy(), batch.column(1))
        for batch in alert_lines(self.connection):
            self._alerts.compare(batch.column(0).to_numpy(), batch.column(1))
        self._derived.add(rows, piece.flushed)
        if piece.flushed:
            self._rollups.add()
        self.connection.unregister("records")

    def _flushed_rows(self, piece: _Range) -> pa.Table:
        """The rows of the Parquet files, each seq once; those that are missing come from the log."""
        rows = self._parquet.rows(piece.first, piece.last)
        if any(column.null_count for column in rows.columns):
            self._findings.add("parquet", "records", f"rows of seqs {piece.first} to {piece.last} hold nulls")
            rows = rows.drop_null()
        counts = np.bincount(_seqs(rows) - piece.first, minlength=piece.last - piece.first + 1)
        if (counts == 1).all():
            return rows
        twice = (np.flatnonzero(counts > 1) + piece.first).tolist()
        if twice:
            files: dict[int, list[str]] = {}
            for seq, name in self._parquet.files_of(twice[:101]):
                files.setdefault(seq, []).append(name)
            for seq, names in files.items():
                self._findings.add("parquet", names[-1], f"seq {seq} stands {len(names)} times: {names}", seq=seq)
            _, once = np.unique(_seqs(rows), return_index=True)
            rows = rows.take(pa.array(once))
        missing = np.flatnonzero(counts == 0) + piece.first
        if len(missing):
            self._findings.add_seqs("parquet", "records", "no Parquet file holds {}", missing.tolist())
            logged = self._logged(piece)
            logged = logged.filter(pa.array(np.isin(_seqs(logged), missing)))
            rows = pa.concat_tables([rows.cast(STORED), logged])
        return rows

    def _hot_rows(self, piece: _Range) -> pa.Table:
        """The records that only the log holds."""
        rows = self._logged(piece)
        missing = np.setdiff1d(np.arange(piece.first, piece.last + 1), _seqs(rows), assume_unique=True)
        self._findings.add_seqs(
            "notification", "outbox/notifications", "no line and no Parquet file holds {}", missing.tolist()
        )
        self._check_surplus(piece, rows)
        return rows

    def _logged(self, piece: _Range) -> pa.Table:
        """The records of the lines of this range, each seq once, sorted."""
        rows = read_lines(self.connection, self._notifications.peek(piece.first, piece.last))
        seqs, once = np.unique(_seqs(rows), return_index=True)
        return rows.take(pa.array(once[(seqs >= piece.first) & (seqs <= piece.last)]))

    def _check_surplus(self, piece: _Range, logged: pa.Table) -> None:
        """Parquet rows above what the catalog calls flushed: legal in a flush under way, if the log has the same."""
        surplus = self._parquet.rows(piece.first, piece.last)
        if not surplus.num_rows:
            return
        self.connection.register("surplus", surplus)
        self.connection.register("logged", logged)
        differing = " OR ".join(f"s.{name} IS DISTINCT FROM l.{name}" for name in STORED.names)
        wrong = self.connection.sql(
            f"""
            SELECT seq, count(*) AS rows FROM surplus AS s LEFT JOIN logged AS l USING (seq)
            GROUP BY seq HAVING count(*) > 1 OR bool_or({differing})
            ORDER BY seq LIMIT 101
            """
        ).fetchall()
        self.connection.unregister("surplus")
        self.connection.unregister("logged")
        files = dict(self._parquet.files_of([seq for seq, _ in wrong])) if wrong else {}
        for seq, rows in wrong:
            message = f"seq {seq} stands {rows} times" if rows > 1 else f"seq {seq} is not the record of its line"
            self._findings.add("parquet", files[seq], message, seq=seq)


def _ranges(seq: int, flushed: int, segments: list[int]) -> list[_Range]:
    """Seqs 1 to `seq` in ranges that lie on one side of `flushed` and in one segment of the log."""
    starts = {1, flushed + 1, *(first for first in segments if first > 1)}
    bounds = [*sorted(start for start in starts if start <= seq), seq + 1]
    return [
        _Range(first, min(first + _RANGE_ROWS, after) - 1, first <= flushed)
        for begin, after in itertools.pairwise(bounds)
        for first in range(begin, after, _RANGE_ROWS)
    ]


def _seqs(rows: pa.Table) -> npt.NDArray[np.int64]:
    return np.asarray(rows.column("seq").to_numpy())
