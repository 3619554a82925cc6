"""`verify` accepts a whole store, and names the kind, the file and the place of every damage to one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from store.schema import STORED
from store.verify import Difference, Report, verify
from tests.storebuilder import DAY_US, SCHEMAS, START_US, StoreBuilder, build, checksum, packed, sample, unpacked

NOTIFICATIONS = "outbox/notifications/00000000000000000001.jsonl"
ALERTS = "outbox/alerts/00000000000000000001.jsonl"
LETTERS = "rejected/00000000000000000001.jsonl"
JOURNAL = "internal/journal/0000000000.journal"


@pytest.fixture
def store(tmp_path: Path) -> StoreBuilder:
    """60 flushed records and 15 hot ones."""
    return build(tmp_path / "data")


def found(report: Report, kind: str, file: str, seq: int | None = None) -> Difference:
    """The one difference with these members; fails with all of them where it is not there."""
    hits = [d for d in report.differences if (d.kind, d.file) == (kind, file) and seq in (None, d.seq)]
    assert hits, "\n".join(map(str, report.differences))
    return hits[0]


def flip(path: Path, offset: int) -> None:
    """Change one bit."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def parquet_of(store: StoreBuilder, seq: int) -> str:
    """The file that holds a seq."""
    for path in sorted(store.root.glob("records/*/*.parquet")):
        if seq in pq.read_table(path, partitioning=None).column("seq").to_pylist():
            return str(path.relative_to(store.root))
    raise AssertionError(seq)


def rewrite(store: StoreBuilder, name: str, change: Callable[[pa.Table], pa.Table], *, enter: bool) -> None:
    """Change the rows of a Parquet file; with `enter` the catalog is made to agree."""
    table = change(pq.read_table(store.root / name, partitioning=None))
    pq.write_table(table.cast(STORED), store.root / name)
    if enter:
        with store.database() as db:
            store.enter_parquet(db, name)


def test_a_whole_store_verifies(store: StoreBuilder) -> None:
    """Nothing is found, and everything was counted."""
    report = verify(store.root).to_json()
    assert report.pop("seconds") >= 0
    alerts = sum(stored.threshold is not None for stored in store.model.stored)
    checked = report.pop("checked")
    assert report == {"ok": True, "asOf": 75, "flushedSeq": 60, "differences": [], "differencesTruncated": False}
    counts = {name: checked[name] for name in ("notifications", "alerts", "records", "index", "deadLetters")}
    assert counts == {"notifications": 75, "alerts": alerts, "records": 75, "index": 60, "deadLetters": 4}
    assert 0 < alerts < 75


def test_an_empty_store_verifies(tmp_path: Path) -> None:
    """A store without a record holds no difference."""
    report = verify(StoreBuilder(tmp_path / "data").root)
    assert report.ok and report.as_of == 0, report.differences


@pytest.mark.parametrize("segment_bytes", [1, 3000])
def test_segments_checkpoints_and_weak_hashes_make_no_difference(
    tmp_path: Path, segment_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logs in many segments, a folded journal, colliding hashes, and ranges of a few records."""
    monkeypatch.setattr("store.verify._RANGE_ROWS", 7)
    store = build(tmp_path / "data [1]*", segment_bytes=segment_bytes, hash_bits=3)
    store.fold_journal()
    store.commit([sample(number) for number in range(76, 90)])
    report = verify(store.root)
    assert report.ok, report.differences
    assert report.as_of == 89 and report.checked["notifications"] == 89


def test_uncommitted_tails_are_no_difference(store: StoreBuilder) -> None:
    """What no frame covers may lie behind logs and journal, as after a kill."""
    for name in (NOTIFICATIONS, ALERTS, LETTERS, JOURNAL):
        with (store.root / name).open("ab") as file:
            file.write(b'OLJ1{"seq":76,"half a line')
    (store.root / "outbox/notifications/00000000000000000076.jsonl").write_bytes(b'{"seq":76')
    (store.root / "outbox/notifications/committed.json").write_bytes(b'{"seq":40}')
    assert verify(store.root).differences == []


def test_a_flush_in_the_middle_is_no_difference(store: StoreBuilder) -> None:
    """Between its renames some files of a flush are visible, and its intent names them."""
    fresh = [stored for stored in store.model.stored[60:] if stored.record[1] // DAY_US == START_US // DAY_US]
    name = f"records/date=2024-03-01/{61:020d}-{75:020d}.parquet"
    store.write_parquet(name, fresh)
    assert found(verify(store.root), "parquet", name).message == "is not in the catalog"
    with store.database() as db:
        body = {"firstSeq": 61, "lastSeq": 75, "moves": [{"from": "internal/staging/a", "to": name}]}
        db.execute("INSERT INTO intents (kind, body) VALUES ('flush', ?)", (json.dumps(body),))
    assert verify(store.root).differences == []
    rewrite(store, name, lambda table: pa.concat_tables([table, table.slice(0, 1)]), enter=False)
    assert "2 times" in found(verify(store.root), "parquet", name).message


def test_a_missing_catalog_is_no_difference(store: StoreBuilder) -> None:
    """It is derived; how far the Parquet files reach is seen from their rows."""
    (store.root / "internal/catalog.sqlite").unlink()
    report = verify(store.root)
    assert report.ok and report.flushed_seq == 60


def test_nothing_is_written_into_the_data_directory(store: StoreBuilder, tmp_path: Path) -> None:
    """The same files with the same bytes and times stand there afterwards."""

    def state() -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(store.root.rglob("*"))}

    before = state()
    (tmp_path / "scratch").mkdir()
    verify(store.root, temp_dir=tmp_path / "scratch")
    assert state() == before
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("notification", NOTIFICATIONS),
        ("alert", ALERTS),
        ("deadLetter", LETTERS),
        ("parquet", "records/*/*.parquet"),
        ("index", "internal/index/*.arrow"),
        ("summary", "internal/summaries/*.arrow"),
    ],
)
@pytest.mark.parametrize("place", [0.0, 0.31, 0.5, 0.87, 1.0])
def test_one_flipped_bit_is_found_in_every_kind_of_file(
    store: StoreBuilder, kind: str, pattern: str, place: float
) -> None:
    """Wherever in the file it is."""
    path = sorted(store.root.glob(pattern))[0]
    flip(path, int(place * (path.stat().st_size - 1)))
    found(verify(store.root), kind, str(path.relative_to(store.root)))


def test_a_flipped_bit_in_a_line_names_its_seq_and_byte(store: StoreBuilder) -> None:
    """The offset is that of the first byte that is not as it must be."""
    lines = (store.root / NOTIFICATIONS).read_bytes().splitlines(keepends=True)
    offset = sum(map(len, lines[:11])) + lines[11].index(b'"previous"') + 25
    flip(store.root / NOTIFICATIONS, offset)
    report = verify(store.root)
    assert found(report, "notification", NOTIFICATIONS, 12).offset == offset
    assert len(report.differences) == 2  # the line and the checksum


def test_a_flipped_bit_in_the_journal_is_corruption(store: StoreBuilder) -> None:
    """A damaged frame before good ones is named by its place; at the very end the catalog or `committed.json` tell."""
    data = (store.root / JOURNAL).read_bytes()
    third = data.index(b"OLJ1", data.index(b"OLJ1", 1) + 1)
    flip(store.root / JOURNAL, third + 60)
    assert found(verify(store.root), "journal", JOURNAL).offset == third
    (store.root / JOURNAL).write_bytes(data[:third])
    report = verify(store.root)
    assert found(report, "journal", JOURNAL, 21)
    assert found(report, "committed", "outbox/notifications/committed.json", 21)


def test_an_exchanged_frame_breaks_the_chain(store: StoreBuilder, tmp_path: Path) -> None:
    """A frame that is good in itself but does not follow from the one before it."""
    other = build(tmp_path / "other")
    other.commit([sample(number) for number in range(76, 80)])
    mine = (store.root / JOURNAL).read_bytes()
    theirs = (other.root / JOURNAL).read_bytes()
    (store.root / JOURNAL).write_bytes(mine + theirs[: theirs.index(b"OLJ1", 1)])
    assert "digest" in found(verify(store.root), "journal", JOURNAL).message


def edit_lines(path: Path, change: Callable[[list[bytes]], object]) -> None:
    """Change the lines of a log."""
    lines = path.read_bytes().splitlines(keepends=True)
    change(lines)
    path.write_bytes(b"".join(lines))


@pytest.mark.parametrize(("seq", "hot"), [(12, False), (66, True)])
def test_a_removed_line_is_missing(store: StoreBuilder, seq: int, hot: bool) -> None:
    """Its seq is named, whether the record is in the Parquet or not."""
    edit_lines(store.root / NOTIFICATIONS, lambda lines: lines.pop(seq - 1))
    report = verify(store.root)
    found(report, "notification", "outbox/notifications" if hot else NOTIFICATIONS, seq)


def test_swapped_lines_are_out_of_order(store: StoreBuilder) -> None:
    """Sums aside, the line that comes too late is named."""

    def swap(lines: list[bytes]) -> None:
        lines[11], lines[12] = lines[12], lines[11]

    edit_lines(store.root / NOTIFICATIONS, swap)
    assert "after seq 13" in found(verify(store.root), "notification", NOTIFICATIONS, 12).message


def test_a_line_that_stands_twice_is_too_much(store: StoreBuilder) -> None:
    """Twice in the log is once too often."""
    edit_lines(store.root / NOTIFICATIONS, lambda lines: lines.insert(11, lines[11]))
    assert "second" in found(verify(store.root), "notification", NOTIFICATIONS, 12).message


def test_a_removed_alert_is_missing(store: StoreBuilder) -> None:
    """The record is above its threshold, so its line must be there."""
    seq = next(stored.seq for stored in store.model.stored if stored.threshold is not None)
    edit_lines(store.root / ALERTS, lambda lines: lines.pop(0))
    assert "missing" in found(verify(store.root), "alert", ALERTS, seq).message


def test_truncated_committed_bytes_are_found(store: StoreBuilder) -> None:
    """A log that is shorter than committed."""
    for kind, name in (("notification", NOTIFICATIONS), ("alert", ALERTS), ("deadLetter", LETTERS)):
        data = (store.root / name).read_bytes()
        (store.root / name).write_bytes(data[:-5])
        assert found(verify(store.root), kind, name)
        (store.root / name).write_bytes(data)


@pytest.mark.parametrize("name", [NOTIFICATIONS, ALERTS, LETTERS])
def test_a_missing_segment_is_found(store: StoreBuilder, name: str) -> None:
    """One difference, not one for each of its lines."""
    (store.root / name).unlink()
    assert found(verify(store.root), "segment", name).message.startswith("is missing")


def test_a_missing_parquet_file_is_found(store: StoreBuilder) -> None:
    """With the seqs that it held."""
    name = parquet_of(store, 7)
    (store.root / name).unlink()
    report = verify(store.root)
    found(report, "parquet", name)
    assert "seqs 1 to 10" in found(report, "parquet", "records", 1).message
    assert {difference.kind for difference in report.differences} == {"parquet"}


def test_a_dropped_row_is_found_even_where_the_catalog_agrees(store: StoreBuilder) -> None:
    """A hole in the seqs; everything else is proven from the log."""
    name = parquet_of(store, 33)
    rewrite(store, name, lambda table: table.filter(pa.compute.field("seq") != 33), enter=True)
    report = verify(store.root)
    found(report, "parquet", "records", 33)
    assert len(report.differences) == 1


def test_a_row_that_stands_twice_is_found(store: StoreBuilder) -> None:
    """In the same file or in another one."""
    name, other = parquet_of(store, 33), parquet_of(store, 7)

    def twice(table: pa.Table) -> pa.Table:
        return pa.concat_tables([table, table.filter(pa.compute.field("seq") == 33)])

    before = (store.root / name).read_bytes()
    rewrite(store, name, twice, enter=True)
    report = verify(store.root)
    found(report, "parquet", name, 33)
    assert len(report.differences) == 1
    (store.root / name).write_bytes(before)
    row = pq.read_table(store.root / name, partitioning=None).filter(pa.compute.field("seq") == 33)
    rewrite(store, other, lambda table: pa.concat_tables([table, row]), enter=True)
    assert any("2 times" in d.message and d.seq == 33 for d in verify(store.root).differences)


def test_a_changed_row_differs_from_its_line(store: StoreBuilder) -> None:
    """Also where file and catalog agree."""
    name = parquet_of(store, 33)

    def change(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        next(row for row in rows if row["seq"] == 33)["sourceId"] = "source-x"
        return pa.Table.from_pylist(rows, schema=STORED)

    rewrite(store, name, change, enter=True)
    report = verify(store.root)
    assert "source-x" in found(report, "notification", NOTIFICATIONS, 33).message
    assert {(d.kind, d.seq) for d in report.differences} <= {("notification", 33), ("alert", 33), ("index", 33)}


def test_a_row_in_the_wrong_partition_is_found(store: StoreBuilder) -> None:
    """The directory is the UTC date of every row in it."""
    name = parquet_of(store, 33)
    moved = f"records/date=2024-04-01/{Path(name).name}"
    (store.root / moved).parent.mkdir()
    (store.root / name).rename(store.root / moved)
    with store.database() as db:
        db.execute("UPDATE files SET name = ? WHERE name = ?", (moved, name))
    assert "other days" in found(verify(store.root), "parquet", moved).message


def edit_run(store: StoreBuilder, kind: str, change: Callable[[list[list[Any]]], object]) -> str:
    """Change the rows of the first run of a kind, catalog and all."""
    path = sorted(store.root.glob(f"internal/{kind}/*.arrow"))[0]
    name = str(path.relative_to(store.root))
    found = pa.ipc.open_file(path.read_bytes()).read_all().select(SCHEMAS[kind].names)
    rows = [list(row.values()) for row in found.to_pylist()]
    change(rows)
    with store.database() as db:
        seqs = db.execute("SELECT min_seq, max_seq FROM runs WHERE name = ?", (name,)).fetchone()
        store.write_run(db, name, kind, SCHEMAS[kind], [tuple(row) for row in rows], seqs)
    return name


@pytest.mark.parametrize(("kind", "difference"), [("index", "index"), ("summaries", "summary")])
def test_a_filter_that_keeps_a_known_hash_out_is_found(store: StoreBuilder, kind: str, difference: str) -> None:
    """Its record would be stored again, or what went before it would be forgotten."""
    path = sorted(store.root.glob(f"internal/{kind}/*.arrow"))[0]
    name = str(path.relative_to(store.root))
    rows = pa.ipc.open_file(path.read_bytes()).read_all()
    bits = rows.column("filter").to_numpy().copy()
    byte = int(bits.argmax())
    bits[byte] &= bits[byte] - 1  # without its lowest bit
    changed = rows.set_column(rows.schema.get_field_index("filter"), "filter", pa.array(bits))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, changed.schema) as writer:
        writer.write_table(changed)
    with store.database() as db:
        db.execute("UPDATE runs SET sum = ? WHERE name = ?", (checksum(path.read_bytes()), name))
    report = verify(store.root)
    assert "of its hashes that they are not there" in found(report, difference, name).message
    assert len(report.differences) == 1


@pytest.mark.parametrize("column", range(4))
def test_a_changed_index_entry_is_found(store: StoreBuilder, column: int) -> None:
    """Hash, day and fingerprint each."""
    seqs: list[int] = []

    def change(rows: list[list[Any]]) -> None:
        seqs.append(rows[3][2] & ((1 << 47) - 1))
        rows[3][column] += 1 << 47 if column == 2 else 1

    name = edit_run(store, "index", change)
    assert "does not fit" in found(verify(store.root), "index", name, seqs[0]).message


def test_missing_and_double_index_entries_are_found(store: StoreBuilder) -> None:
    """One entry takes the place of another."""
    seqs: list[int] = []

    def change(rows: list[list[Any]]) -> None:
        seqs.extend(row[2] & ((1 << 47) - 1) for row in rows[3:5])
        rows[4] = rows[3]

    name = edit_run(store, "index", change)
    report = verify(store.root)
    assert any("second entry" in d.message and d.seq == seqs[0] for d in report.differences)
    assert any("no entry" in d.message and d.seq == seqs[1] for d in report.differences)
    assert any("not above" in d.message and d.file == name for d in report.differences)


@pytest.mark.parametrize(("number", "more"), [(1, 1), (2, 1), (3, 1), (4, -(10**15)), (5, 10**15), (6, 40)], ids=str)
def test_a_changed_summary_is_found(store: StoreBuilder, number: int, more: int) -> None:
    """Count, sums, times and seq each; the key is named."""

    def change(rows: list[list[Any]]) -> None:
        values: list[Any] = list(unpacked(rows[3][2]))
        values[number] += more
        rows[3][2] = packed(*values)

    name = edit_run(store, "summaries", change)
    report = verify(store.root)
    assert any("destinationId" in d.message for d in report.differences if d.kind == "summary")
    assert {d.kind for d in report.differences} == {"summary"}, name


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (b"\0\0\0", "shorter than its header"),
        (b"\1\0\0\0", "another length than its header says"),
        (b"\0\x09\0\0" + bytes(9), "more than eight bytes"),
        (b"\2\0\0\0\xff\xff", "Invalid UTF8"),
        (b"\0\0\x0f\0" + bytes(15) + b"\xff", "does not fit in precision"),
    ],
)
def test_what_is_no_summary_is_found(store: StoreBuilder, damaged: bytes, message: str) -> None:
    """With its page."""

    def change(rows: list[list[Any]]) -> None:
        rows[3][2] = damaged

    name = edit_run(store, "summaries", change)
    assert any(
        "page 0 cannot be read" in d.message and message in d.message and d.file == name
        for d in verify(store.root).differences
    ), verify(store.root).differences


@pytest.mark.parametrize("column", range(7))
def test_a_changed_rollup_is_found(store: StoreBuilder, column: int) -> None:
    """Hour, destination, unit, counts and sums each."""

    def change(rows: list[list[Any]]) -> None:
        rows[-1][column] = rows[-1][column] + "~" if column in (1, 2) else rows[-1][column] + 1

    name = edit_run(store, "rollups", change)
    report = verify(store.root)
    assert any("the records have" in d.message and "hour 20" in d.message for d in report.differences)
    assert {d.kind for d in report.differences} == {"rollup"}, name


def test_rows_of_a_rollup_out_of_order_are_found(store: StoreBuilder) -> None:
    """What is looked up by hour must be sorted by it."""
    name = edit_run(store, "rollups", lambda rows: rows.reverse())
    assert "in order" in found(verify(store.root), "rollup", name).message


def test_changed_rules_do_not_give_the_alerts(tmp_path: Path) -> None:
    """The alerts are those of the rules in the journal, so a store built under others differs."""
    store = StoreBuilder(tmp_path / "data")
    store.commit([sample(number) for number in range(1, 11)])
    store.rules.append({"firstSeq": 1, "rules": {"threshold": "0", "byUnit": {}, "byDestination": {}}})
    store.fold_journal()  # with a checkpoint that lies
    report = verify(store.root)
    assert '"threshold":"0"' in found(report, "alert", ALERTS, 7).message
    assert "missing: the line of seqs 8 to 10" in found(report, "alert", ALERTS, 8).message


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ("UPDATE files SET rows = rows + 1", "catalog"),
        ("UPDATE files SET max_time = max_time + 1", "catalog"),
        ("UPDATE files SET sum = '0000000000000000'", "parquet"),
        ("UPDATE meta SET value = '59' WHERE key = 'flushed'", "catalog"),
        ("UPDATE meta SET value = '61' WHERE key = 'flushed'", "parquet"),
        ("UPDATE meta SET value = '99' WHERE key = 'frame'", "journal"),
        ("UPDATE meta SET value = 'ab' WHERE key = 'digest'", "catalog"),
        ("DELETE FROM files WHERE min_seq > 40", "parquet"),
        ("DELETE FROM runs WHERE kind = 'index' AND min_seq = 1", "index"),
        ("DELETE FROM runs WHERE kind = 'summaries' AND min_seq = 1", "summary"),
        ("UPDATE runs SET rows = rows + 1 WHERE kind = 'index'", "index"),
        ("DELETE FROM runs WHERE kind = 'rollups' AND min_seq = 1", "rollup"),
        ("UPDATE runs SET max_seq = max_seq + 1 WHERE kind = 'rollups'", "rollup"),
    ],
)
def test_a_catalog_that_does_not_fit_is_found(store: StoreBuilder, change: str, kind: str) -> None:
    """Each of its statements is held against the files."""
    with store.database() as db:
        db.execute(change)
    assert kind in {difference.kind for difference in verify(store.root).differences}


def test_a_damaged_catalog_is_a_difference_of_its_own(store: StoreBuilder) -> None:
    """Everything that does not need it is still proven."""
    path = store.root / "internal/catalog.sqlite"
    path.write_bytes(b"x" * 100 + path.read_bytes()[100:])
    report = verify(store.root)
    assert [(d.kind, d.file) for d in report.differences] == [("catalog", "internal/catalog.sqlite")]
    assert report.flushed_seq == 60


def test_a_record_id_that_is_stored_twice_is_found(store: StoreBuilder) -> None:
    """Between hot and flushed records, and among them."""
    store.commit([sample(76), (sample(5)[0], *sample(77)[1:]), sample(78), (sample(78)[0], *sample(79)[1:])])
    report = verify(store.root)
    assert found(report, "recordId", "outbox/notifications", 77).message.endswith("seqs 5, 77")
    assert found(report, "recordId", "outbox/notifications", 79)


def test_dead_letters_have_ids_of_their_own(store: StoreBuilder) -> None:
    """An id that stands twice, and a line that is none."""
    store.letters = 3
    store.commit([], letters=1)
    assert "twice" in found(verify(store.root), "deadLetter", LETTERS).message


def test_a_report_lists_a_hundred_differences_and_says_that_there_are_more(store: StoreBuilder) -> None:
    """So that a lost file cannot fill the disk with findings."""
    edit_lines(store.root / NOTIFICATIONS, lambda lines: lines.reverse())
    edit_lines(store.root / ALERTS, lambda lines: lines.reverse())
    edit_run(store, "index", lambda rows: [row.__setitem__(3, 0) for row in rows])
    report = verify(store.root).to_json()
    assert len(report["differences"]) == 100 and report["differencesTruncated"] is True
