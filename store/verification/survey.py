"""What is on disk at one moment, taken so that a running service does not blur it.

The catalog only moves forward with a flush, a merge or a compaction: where it is the same before and after the files
were listed, the listing is that of its state. `committed.json` is read before and the journal after everything else,
so that the journal covers whatever was seen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from store.holding import Holding
from store.verification.catalog import CatalogDamageError, CatalogView, ParquetRow, read_catalog
from store.verification.commits import LOGS, Commits, LogFile, read_commits
from store.verification.report import Findings, VanishedError
from store.verification.runs import KINDS, OpenRun, open_runs

__all__ = ["Survey", "take_survey"]

_TRIES = 50
_CATALOG = "internal/catalog.sqlite"


@dataclass
class Survey:
    """What to verify: `files` are the Parquet files that are there, `catalog` is None where none can be used."""

    commits: Commits
    catalog: CatalogView | None
    gone: set[str]
    """Committed log segments that are not there (and were reported)."""
    files: list[str]
    damaged: set[str] = field(default_factory=set)
    """Parquet files whose bytes are not those that the catalog says."""
    runs: list[OpenRun] = field(default_factory=list)


def take_survey(root: Path, scratch: Path, findings: Findings, holding: Holding) -> Survey:
    """See the module. What is missing, too much or damaged as a whole becomes differences.

    `holding` keeps the Parquet files, so that compactions do not take them away.
    """
    told = {feed: _told(root, feed, findings) for feed in ("notifications", "alerts")}
    for attempt in range(_TRIES):
        trial = Findings()
        try:
            catalog = _catalog(root, scratch, trial)
            listed = sorted(str(path.relative_to(root)) for path in (root / "records").rglob("*.parquet"))
            holding.close()
            holding.hold(listed)
            present = {row.name for row in catalog.runs if (root / row.name).exists()} if catalog else set()
            runs = open_runs(root, [row for row in catalog.runs if row.name in present], trial) if catalog else []
            if _catalog(root, scratch, Findings()) != catalog:
                continue
            catalog = catalog and catalog.settled(listed)
            commits = read_commits(root, trial)
            gone = _missing_logs(root, commits, trial)
            break
        except (VanishedError, FileNotFoundError) as error:
            if attempt + 1 == _TRIES:
                raise VanishedError(str(error)) from error
    else:
        raise VanishedError("the store keeps changing")
    findings.merge(trial)
    for feed, seq in told.items():
        if seq is not None and seq > commits.seq:
            message = f"says that seq {seq} is committed, the journal ends at seq {commits.seq}"
            findings.add("committed", f"outbox/{feed}/committed.json", message, seq=commits.seq + 1)
    survey = Survey(commits, catalog, gone, listed, runs=runs)
    if catalog is not None:
        _fit(survey, catalog, present, findings)
        _sums(survey, catalog, findings, holding)
    return survey


def _told(root: Path, feed: str, findings: Findings) -> int | None:
    path = root / "outbox" / feed / "committed.json"
    try:
        return int(json.loads(path.read_bytes())["seq"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        findings.add("committed", str(path.relative_to(root)), f"cannot be read: {error!r}")
        return None


def _catalog(root: Path, scratch: Path, findings: Findings) -> CatalogView | None:
    try:
        return read_catalog(root, scratch)
    except CatalogDamageError as error:
        findings.add("catalog", _CATALOG, f"cannot be read ({error}): it is made anew at the next start")
        return None


def _missing_logs(root: Path, commits: Commits, findings: Findings) -> set[str]:
    """The committed segments that are not there; they become differences.

    A file that no commit names is the beginning of one (above the committed seqs), or was left by a retention that was
    stopped between the journal and the removal (below them); in between there must be none.
    """
    gone: set[str] = set()
    for log in LOGS:
        files = commits.logs[log]
        for file in files:
            if (root / file.path).exists():
                continue
            gone.add(file.path)
            message = f"is missing; {file.end} bytes of it are committed"
            findings.add("segment", file.path, message, seq=max(file.first, 0) if log != LOGS[2] else None)
        firsts = [file.first for file in files]
        if firsts != sorted(set(firsts)) or (firsts and firsts[0] < 0):
            findings.add("segment", log, f"the names of the segments do not ascend: {firsts}")
        known = {file.path for file in files}
        for path in sorted((root / log).glob("*.jsonl")):
            name = str(path.relative_to(root))
            stray = LogFile(name, 0, "").first
            if name not in known and firsts and firsts[0] < stray <= (commits.seq if log != LOGS[2] else firsts[-1]):
                findings.add("segment", name, "is not among the committed segments", seq=stray)
    return gone


def _fit(survey: Survey, catalog: CatalogView, present: set[str], findings: Findings) -> None:
    """The catalog stands for a commit of this journal, and names the files that are there."""
    commits = survey.commits
    if catalog.frame > commits.number or catalog.flushed > commits.seq:
        message = (
            f"ends with commit {commits.number} (seq {commits.seq}), the catalog knows commit {catalog.frame} "
            f"(seq {catalog.flushed}): the end of the journal is lost, or the catalog is of another store"
        )
        findings.add("journal", commits.file, message, seq=commits.seq + 1)
    elif catalog.frame >= 0 and commits.digests.get(catalog.frame, catalog.digest) != catalog.digest:
        message = f"commit {catalog.frame} has the digest {commits.digests[catalog.frame]}, not {catalog.digest}"
        findings.add("catalog", _CATALOG, message)
    there = set(survey.files)
    for row in catalog.files:
        if row.name not in there:
            message = f"is missing; it holds {row.rows} records of seqs {row.min_seq} to {row.max_seq}"
            findings.add("parquet", row.name, message, seq=row.min_seq)
        if row.max_seq > catalog.flushed:
            message = f"{row.name} reaches seq {row.max_seq}, only {catalog.flushed} are said to be flushed"
            findings.add("catalog", _CATALOG, message, seq=row.max_seq)
    for name in sorted(there - {row.name for row in catalog.files} - catalog.targets):
        findings.add("parquet", name, "is not in the catalog")
    for run in catalog.runs:
        if run.name not in present:
            findings.add(KINDS[run.kind], run.name, "is missing")


def _sums(survey: Survey, catalog: CatalogView, findings: Findings, holding: Holding) -> None:
    """Size and checksum of the Parquet files."""
    there = set(survey.files)
    for row in catalog.files:
        if row.name not in there:
            continue
        size, found = _checksum(holding.path(row.name))
        findings.checked["files"] += 1
        if (size, found) != (row.bytes, row.sum):
            message = f"has {size} bytes with checksum {found}, the catalog says {row.bytes} with {row.sum}"
            findings.add("parquet", row.name, message)
            survey.damaged.add(row.name)


def check_facts(row: ParquetRow, facts: tuple[int, int, int, int, int], findings: Findings) -> None:
    """Rows, seqs and times of a file (count, min seq, max seq, min time, max time) are those that the catalog says."""
    said = (row.rows, row.min_seq, row.max_seq, row.min_time, row.max_time)
    names = ("rows", "min_seq", "max_seq", "min_time", "max_time")
    for name, found, claimed in zip(names, facts, said, strict=True):
        if found != claimed:
            findings.add("catalog", _CATALOG, f"{row.name}: {name} is {found}, the catalog says {claimed}")


def _checksum(path: Path) -> tuple[int, str]:
    hasher = xxhash.xxh3_64()
    size = 0
    try:
        with path.open("rb") as file:
            while piece := file.read(8 << 20):
                hasher.update(piece)
                size += len(piece)
    except FileNotFoundError as error:
        raise VanishedError(f"{path} is gone") from error
    return size, hasher.hexdigest()
