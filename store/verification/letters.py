"""The dead letters: committed bytes as they were written, a JSON object with an id of its own in every line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import xxhash

from store.verification.commits import LogFile
from store.verification.report import Findings, VanishedError

__all__ = ["check_letters"]

_READ_BYTES = 8 << 20


def check_letters(connection: duckdb.DuckDBPyConnection, root: Path, files: list[LogFile], findings: Findings) -> None:
    """Read all of them, a few megabytes at a time."""
    connection.execute("CREATE TABLE letters (id VARCHAR, file VARCHAR, begins BIGINT)")
    for file in files:
        for lines, offsets in _pieces(root, file, findings):
            _check_lines(connection, file.path, lines, offsets, findings)
            findings.checked["deadLetters"] += len(lines)
        findings.checked["files"] += 1
    twice = connection.sql(
        "SELECT id, max_by(file, (file, begins)), max_by(begins, (file, begins)) FROM letters WHERE id IS NOT NULL "
        "GROUP BY id HAVING count(*) > 1 ORDER BY id LIMIT 101"
    ).fetchall()
    for letter_id, name, at in twice:
        findings.add("deadLetter", name, f"the id {letter_id!r} stands twice", offset=at)


def _check_lines(
    connection: duckdb.DuckDBPyConnection, name: str, lines: list[bytes], offsets: list[int], findings: Findings
) -> None:
    texts = [line.decode("utf-8", "replace") for line in lines]
    connection.register(
        "lines", pa.table({"line": pa.array(texts, pa.string()), "begins": pa.array(offsets, pa.int64())})
    )
    try:
        found = connection.sql(
            "SELECT CASE WHEN json_valid(line) THEN json_extract_string(line, '$.id') END AS id, begins FROM lines"
        ).to_arrow_table()
    finally:
        connection.unregister("lines")
    for row in found.filter(found.column("id").is_null()).to_pylist():
        findings.add("deadLetter", name, "the line is no JSON object with an id", offset=row["begins"])
    connection.register("found", found)
    connection.execute("INSERT INTO letters SELECT id, ?, begins FROM found", [name])
    connection.unregister("found")


def _pieces(root: Path, file: LogFile, findings: Findings) -> Iterator[tuple[list[bytes], list[int]]]:
    """The committed lines of a file and where each begins; at the end its length and checksum are proven."""
    hasher = xxhash.xxh3_64()
    position, rest = 0, b""
    try:
        handle = (root / file.path).open("rb")
    except FileNotFoundError as error:
        raise VanishedError(f"{root / file.path} is gone") from error
    with handle:
        while position < file.end and (piece := handle.read(min(_READ_BYTES, file.end - position))):
            hasher.update(piece)
            begin = position - len(rest)
            position += len(piece)
            *lines, rest = (rest + piece).split(b"\n")
            offsets = []
            for line in lines:
                offsets.append(begin)
                begin += len(line) + 1
            yield lines, offsets
    if position < file.end:
        message = f"ends at byte {position}, {file.end} are committed"
        findings.add("deadLetter", file.path, message, offset=position)
    elif rest:
        findings.add("deadLetter", file.path, "the committed bytes end within a line", offset=position - len(rest))
    if position == file.end and hasher.hexdigest() != file.sum:
        message = f"the checksum of its {file.end} committed bytes is {hasher.hexdigest()}, not {file.sum}"
        findings.add("deadLetter", file.path, message)
