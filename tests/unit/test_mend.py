"""`oncelake rebuild --mend`: what is damaged is made again from the other copy, proven, or said to be lost."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

import store.store
from outbox.mend import Mended, mend
from service.cli import main
from store import gathering
from store import mend as mending
from store.catalog import Catalog
from store.errors import CorruptionError, StoreInUseError
from store.files import Disk
from store.filters import Filters
from store.verify import verify
from tests.support.failpoints import FAULTS, FaultyOs, faulty
from tests.support.faults import Crash, FaultyDisk
from tests.support.lake import Lake

SEED = int(os.environ.get("ONCELAKE_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
EVERY = int(os.environ.get("ONCELAKE_TEST_MEND_EVERY", "4"))
"""Of the calls that a mending may be cut at, one of so many is tried; which of them, the seed says."""

QUARANTINE = "internal/quarantine"
THRESHOLD = "500"


def record(number: int) -> dict[str, object]:
    return {
        "recordId": f"rec-{number}",
        "time": f"2024-03-{1 + number % 3:02}T{number % 24:02}:00:00Z",
        "sourceId": "source-ö",
        "destinationId": f"dest-{number % 5}",
        "type": "positive" if number % 4 else "negative",
        "value": f"{number * 37 % 1_000}.5",
        "unit": "SEK" if number % 6 else "kg",
        "reference": f"invoice-{number % 7}",
    }


def batch(first: int, count: int) -> bytes:
    return json.dumps([record(number) for number in range(first, first + count)]).encode()


def opened(root: Path, **options: Any) -> Lake:
    return Lake(root, threshold=THRESHOLD, segment_bytes=3_000, **options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A closed store of three days, with several flushes and segments, dead letters, and hot rows."""
    lake = opened(tmp_path / "base" / "data")
    for first in range(0, 100, 20):
        lake.post(batch(first, 20))
        lake.store.flush_once()
    lake.post(b'[{"recordId": 1}]')
    lake.post(batch(200, 7))
    lake.close()
    return lake.root


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "removed": lambda path: path.unlink(),
}


def parquet(root: Path) -> list[Path]:
    return sorted(root.glob("records/**/*.parquet"))


def segments(root: Path, feed: str) -> list[Path]:
    return sorted((root / "outbox" / feed).glob("*.jsonl"))


def contents(root: Path, *folders: str) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for folder in folders
        for path in sorted((root / folder).rglob("*"))
        if path.is_file()
    }


def answers(root: Path) -> tuple[Any, ...]:
    """What the store says of everything, and what it takes."""
    lake = opened(root)
    try:
        repeated = lake.answer(lake.post(batch(95, 10), dry_run=True))
        return repeated, lake.aggregate(Filters()), lake.lines("notifications"), lake.lines("alerts")
    finally:
        lake.close()


def mended(root: Path, disk: Disk | None = None) -> tuple[Mended, list[str]]:
    told: list[str] = []
    return mend(root, disk or Disk(fsync=False), told.append), told


def without_links(root: Path) -> None:
    """As a copy that does not keep them."""
    shutil.rmtree(root / "internal/links")


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("what", ["records", "notifications", "alerts"])
def test_files_are_made_again_whatever_became_of_them(
    root: Path, what: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the other copy: same seqs, same rows, outboxes to the byte, same answers."""
    told, outbox = answers(root), contents(root, "outbox")
    without_links(root)
    paths = parquet(root) if what == "records" else segments(root, what)
    damaged = [paths[0], paths[1], paths[len(paths) // 2]]
    for path in damaged:
        DAMAGES[how](path)
    assert main(["rebuild", "--mend", "--data", str(root)]) == 0
    said = capsys.readouterr().out
    assert all(f"mended: {path.relative_to(root)} " in said for path in damaged) and "3 mended, 0 lost" in said
    report = verify(root)
    assert report.ok, report.differences
    assert contents(root, "outbox") == outbox
    assert answers(root) == told
    in_quarantine = list((root / QUARANTINE).glob("*")) if (root / QUARANTINE).is_dir() else []
    assert len(in_quarantine) == (0 if how == "removed" else 3)


@pytest.mark.parametrize("rows_at_once", [7, 1 << 18])
def test_all_of_it_at_once(root: Path, monkeypatch: pytest.MonkeyPatch, rows_at_once: int) -> None:
    """Every Parquet file, and then every alert and every flushed notification; in many pieces as well."""
    monkeypatch.setattr(gathering, "_ROWS", rows_at_once)
    monkeypatch.setattr(gathering, "_FAN_IN", 2 if rows_at_once == 7 else 64)
    monkeypatch.setattr(mending, "_ROUND_FILES", 2 if rows_at_once == 7 else 64)
    told, outbox = answers(root), contents(root, "outbox")
    without_links(root)
    shutil.rmtree(root / "records")
    assert mended(root)[0].hopeless == []
    assert verify(root).ok
    for path in [*segments(root, "notifications")[:-2], *segments(root, "alerts")]:
        flip(path)
    assert mended(root)[0].hopeless == []
    assert verify(root).ok and contents(root, "outbox") == outbox
    assert answers(root) == told


def test_both_copies_may_be_damaged_in_different_places(root: Path) -> None:
    """The log has the records of a Parquet file, and sound files and the new one have those of the segments."""
    told = answers(root)
    without_links(root)
    flip(parquet(root)[-1])
    flip(segments(root, "notifications")[0])
    flip(segments(root, "alerts")[0])
    result, said = mended(root)
    assert (result.done, result.hopeless, len(said)) == (3, [], 3)
    assert verify(root).ok and answers(root) == told


def damaged_line(path: Path, seq: int, place: bytes = b'"value":"') -> None:
    """One bit of one line."""
    data = bytearray(path.read_bytes())
    line = data.index(b'{"seq":%d,' % seq)
    data[data.index(place, line) + len(place)] ^= 1
    path.write_bytes(data)


def seqs_of(path: Path) -> list[int]:
    found: list[int] = pq.read_table(path, columns=["seq"], partitioning=None).column("seq").to_pylist()
    return found


def test_the_whole_lines_of_a_damaged_segment_do(root: Path) -> None:
    """Both copies of a range are damaged, and not of the same records: the index proves the lines, the segment them."""
    told, outbox = answers(root), contents(root, "outbox")
    without_links(root)
    path = parquet(root)[0]
    others = [seq for other in parquet(root)[1:] for seq in seqs_of(other)]
    first = segments(root, "notifications")[0]
    (seq,) = [each for each in others if each <= 20][:1]
    damaged_line(first, seq)
    flip(path)
    result, said = mended(root)
    assert (result.hopeless, len(said)) == ([], 2)
    assert verify(root).ok and contents(root, "outbox") == outbox and answers(root) == told


@pytest.mark.parametrize("place", [b'"value":"', b'"processedAt":"2', b'"count":', b'"seq":'])
def test_a_record_that_both_copies_have_damaged_is_lost(root: Path, place: bytes) -> None:
    """Also where only the time of its commit differs, which the index does not know; nothing is touched."""
    without_links(root)
    path = parquet(root)[0]
    segment = segments(root, "notifications")[0]
    damaged_line(segment, min(seqs_of(path)), place)
    before = contents(root, "records", "outbox")
    flip(path)
    result, _ = mended(root)
    if place == b'"count":':
        assert result.hopeless == []  # what was before a record is made of other records
        return
    assert [path.name in result.hopeless[0], segment.name in result.hopeless[1]] == [True, True]
    assert path.name in result.hopeless[1] and "rebuild" not in result.hopeless[1]
    flip(path)
    assert contents(root, "records", "outbox") == before


def test_a_lost_catalog_is_no_hindrance(root: Path) -> None:
    """Files that are gone or cannot be read are found by the seqs that no other file holds."""
    told, outbox = answers(root), contents(root, "outbox")
    without_links(root)
    (root / "internal/catalog.sqlite").unlink()
    paths = parquet(root)
    paths[0].unlink()
    DAMAGES["cut"](paths[4])
    paths[-1].write_bytes(b"PAR1")
    flip(segments(root, "notifications")[2])
    flip(segments(root, "alerts")[0])
    with pytest.raises(CorruptionError, match="oncelake rebuild --mend"):
        opened(root)
    result, _ = mended(root)
    assert result.hopeless == []
    assert verify(root).ok and contents(root, "outbox") == outbox and answers(root) == told


def test_a_changed_file_is_found_by_the_log_where_the_catalog_is_lost(root: Path) -> None:
    """Whole in itself, with another value in it: the log has the record as it was."""
    told = answers(root)
    without_links(root)
    path = parquet(root)[2]
    table = pq.read_table(path, partitioning=None)
    at = table.schema.get_field_index("reference")
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(["other"] * table.num_rows)), path)
    (root / "internal/catalog.sqlite").unlink()
    with pytest.raises(CorruptionError, match="oncelake rebuild --mend"):
        opened(root)
    result, said = mended(root)
    assert result.hopeless == [] and path.name in said[0]
    assert verify(root).ok and answers(root) == told


def test_a_flush_under_way_that_lost_files_is_mended_like_any_other(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was staged and is gone is in the log, and the runs are made anew."""
    told = answers(root)

    def killed(*_: object) -> None:
        raise Crash

    lake = opened(root)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(store.store, "move_into_place", killed)
        lake.store.flush_once()
    lake.close()
    for path in [*(root / "internal/staging").glob("*.0.parquet"), *(root / "internal/staging").glob("*.index.*")]:
        path.unlink()
    with pytest.raises(CorruptionError, match="is lost"):
        opened(root)
    result, said = mended(root)
    assert (result.hopeless, len(said)) == ([], 1)
    assert verify(root).ok and answers(root) == told


def test_without_catalog_and_log_what_is_lacking_is_said(root: Path) -> None:
    """And nothing is moved."""
    lake = opened(root, retention_us={"outbox/notifications": 1})
    lake.store.flush_once()
    lake.post(batch(300, 20))
    lake.retain(1 << 62)
    lake.close()
    (root / "internal/catalog.sqlite").unlink()
    DAMAGES["cut"](parquet(root)[0])
    before = contents(root, "records", "outbox")
    result, _ = mended(root)
    assert len(result.hopeless) == 1 and "records/ lacks" in result.hopeless[0]
    assert parquet(root)[0].name in result.hopeless[0]
    assert contents(root, "records", "outbox") == before


def test_what_is_whole_is_left_alone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not a byte of records, outboxes and dead letters changes."""
    before = contents(root, "records", "outbox", "rejected", "internal/index")
    assert main(["rebuild", "--mend", "--data", str(root)]) == 0
    assert "0 mended, 0 lost" in capsys.readouterr().out
    assert contents(root, "records", "outbox", "rejected", "internal/index") == before


def test_a_removed_file_is_put_back_by_its_link_though_the_log_is_gone(root: Path) -> None:
    """The bytes are still there under the private name: nothing has to be made of anything."""
    lake = opened(root, retention_us={"outbox/notifications": 1})
    lake.store.flush_once()
    lake.retain(1 << 62)
    lake.close()
    before = contents(root, "records")
    shutil.rmtree(root / "records")
    result, said = mended(root)
    assert result.hopeless == [] and "put back" in said[0]
    assert contents(root, "records") == before and verify(root).ok


def test_records_that_the_log_has_no_more_are_said_to_be_lost(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By file and seqs, with exit code 1, and the damaged file stays; what can be mended is, all the same."""
    lake = opened(root, retention_us={"outbox/notifications": 1})
    lake.store.flush_once()
    lake.post(batch(300, 20))
    lake.retain(1 << 62)
    lake.close()
    without_links(root)
    path = parquet(root)[0]
    flip(path)
    alerts = segments(root, "alerts")[-1]
    flip(alerts)
    before = path.read_bytes()
    assert main(["rebuild", "--mend", "--data", str(root)]) == 1
    said = capsys.readouterr().out
    assert f"lost: {path.relative_to(root)} is damaged: of its" in said and "records of seqs" in said
    assert "backup" in said
    assert path.read_bytes() == before
    assert str(alerts.relative_to(root)) in said


def test_lines_that_are_not_flushed_are_nowhere_else(root: Path) -> None:
    """A segment of them is lost; one in which only flushed lines are damaged is made whole around them."""
    last = segments(root, "notifications")[-1]
    whole = last.read_bytes()
    flip(last)
    result, _ = mended(root)
    assert len(result.hopeless) == 1 and "nowhere else" in result.hopeless[0] and last.name in result.hopeless[0]
    last.write_bytes(whole)
    assert verify(root).ok


def test_flushed_lines_of_the_open_segment_are_made_again_before_those_that_are_not(tmp_path: Path) -> None:
    """The end of the segment is taken as it stands, and its checksum proves the whole."""
    lake = Lake(tmp_path / "data", threshold=THRESHOLD, segment_bytes=1 << 20)
    lake.post(batch(0, 20))
    lake.store.flush_once()
    lake.post(batch(20, 5))
    lake.close()
    outbox = contents(lake.root, "outbox")
    (segment,) = segments(lake.root, "notifications")
    data = bytearray(segment.read_bytes())
    data[100] ^= 1
    segment.write_bytes(data)
    assert mended(lake.root)[0].hopeless == []
    assert contents(lake.root, "outbox") == outbox and verify(lake.root).ok


def test_a_segment_that_would_not_be_what_was_committed_is_refused(root: Path) -> None:
    """Where the records themselves were changed, checksum and all: nothing is put in the place of the segment."""
    path = parquet(root)[0]
    table = pq.read_table(path, partitioning=None)
    at = table.schema.get_field_index("unit")
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(["EUR"] * table.num_rows)), path)
    data = path.read_bytes()
    catalog = Catalog(root / "internal/catalog.sqlite")
    catalog._db.execute(
        "UPDATE files SET bytes = ?, sum = ? WHERE name = ?",
        (len(data), xxhash.xxh3_64_hexdigest(data), str(path.relative_to(root))),
    )
    catalog.close()
    segment = segments(root, "notifications")[0]
    flip(segment)
    before = segment.read_bytes()
    result, _ = mended(root)
    assert [segment.name in each and "are committed" in each for each in result.hopeless] == [True]
    assert segment.read_bytes() == before


def test_dead_letters_are_nowhere_else(root: Path) -> None:
    """It says so, and mends the rest."""
    flip(next((root / "rejected").glob("*.jsonl")))
    flip(segments(root, "alerts")[0])
    result, _ = mended(root)
    assert result.done == 1
    assert len(result.hopeless) == 1 and "dead letters" in result.hopeless[0]


def test_it_is_refused_beside_a_service(root: Path) -> None:
    """And beside a second one of itself."""
    lake = opened(root)
    with pytest.raises(StoreInUseError, match="in use"):
        mended(root)
    lake.close()


def test_a_mended_store_goes_on_and_is_mended_again(root: Path) -> None:
    """Commits, flushes, compaction; a lost catalog is made anew from new files too; a new name each time."""
    without_links(root)
    for _ in range(2):
        for path in list(parquet(root)):
            flip(path)
        assert mended(root)[0].hopeless == []
    assert all(path.stem.endswith(".mended2") for path in parquet(root))
    lake = opened(root)
    lake.post(batch(400, 40))
    lake.store.flush_once()
    expected = lake.aggregate(Filters())
    while lake.store.compaction.run_once(1e9):
        pass
    assert lake.aggregate(Filters()) == expected
    lake.close()
    assert verify(root).ok
    (root / "internal/catalog.sqlite").unlink()
    lake = opened(root)
    assert lake.aggregate(Filters()) == expected
    lake.close()
    assert verify(root).ok


def test_a_start_names_the_command(root: Path) -> None:
    """Whatever committed file is found to be missing or damaged."""
    flip(segments(root, "alerts")[-1])
    with pytest.raises(CorruptionError, match="alerts/.*oncelake rebuild --mend"):
        opened(root)
    mended(root)
    parquet(root)[0].unlink()
    with pytest.raises(CorruptionError, match="records/.*oncelake rebuild --mend"):
        opened(root)
    mended(root)
    flip(next((root / "rejected").glob("*.jsonl")))
    with pytest.raises(CorruptionError, match="rejected/.*backup"):
        opened(root)


@pytest.fixture
def broken(root: Path) -> Path:
    """Damage of every kind that can be mended."""
    without_links(root)
    flip(parquet(root)[0])
    parquet(root)[-1].unlink()
    flip(segments(root, "notifications")[1])
    segments(root, "alerts")[0].unlink()
    return root


def assert_no_record_twice(root: Path) -> None:
    """In the analysts' glob, but for files that cannot be read."""
    seqs: list[int] = []
    for path in parquet(root):
        try:
            seqs += pq.read_table(path, columns=["seq"], partitioning=None).column("seq").to_pylist()
        except (OSError, pa.ArrowException):
            continue
    assert len(seqs) == len(set(seqs))


def some_of(calls: int) -> range:
    """The numbers of the calls that are tried."""
    print(f"seed {SEED}: ONCELAKE_TEST_SEED={SEED}")
    return range(1 + SEED % EVERY, calls + 1, EVERY)


@pytest.mark.parametrize("catalog", ["with its catalog", "without"])
def test_it_may_be_killed_at_any_call_and_run_again(broken: Path, tmp_path: Path, catalog: str) -> None:
    """No state in between shows a record twice, and the next run ends it."""
    if catalog == "without":
        (broken / "internal/catalog.sqlite").unlink()
        DAMAGES["cut"](parquet(broken)[0])
    with faulty(FaultyOs(broken)) as system:
        shutil.copytree(broken, tmp_path / "count" / "data")
        mended(tmp_path / "count" / "data", Disk())
    calls = len(system.calls)
    assert calls > 20
    for at in some_of(calls):
        root = tmp_path / "state" / "data"
        shutil.copytree(broken, root)
        with (
            faulty(FaultyOs(root, at, FAULTS[at // EVERY % 2])),
            pytest.raises(Crash),
        ):  # before the call, after the next one
            mended(root, Disk())
        assert_no_record_twice(root)
        assert mended(root)[0].hopeless == [], (at, system.calls[at - 1])
        assert at // EVERY % 8 or verify(root).ok, (at, system.calls[at - 1])
        opened(root).close()
        shutil.rmtree(root.parent)


def test_it_may_lose_power_at_any_call(broken: Path, tmp_path: Path) -> None:
    """What was synced is enough to go on from."""
    shutil.copytree(broken, tmp_path / "count" / "data")
    disk = FaultyDisk(tmp_path / "count" / "data")
    mended(disk.root, disk)
    disk.close()
    for at in some_of(len(disk.calls)):
        root = tmp_path / "state" / "data"
        shutil.copytree(broken, root)
        faulting = FaultyDisk(root, at)
        with pytest.raises(Crash):
            mended(root, faulting)
        left = faulting.survivors(tmp_path / "state" / "unpowered")
        faulting.close()
        assert_no_record_twice(left)
        assert mended(left)[0].hopeless == [], (at, disk.calls[at - 1])
        assert at // EVERY % 8 or verify(left).ok, (at, disk.calls[at - 1])
        opened(left).close()
        shutil.rmtree(root.parent)


def test_the_way_out_without_a_backup(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The statement of docs/operations.md and one command put what is not lost into a new store, in its order."""
    lake = opened(root)
    lake.store.flush_once()
    lake.close()
    path = parquet(root)[0]
    lost = pq.read_table(path, columns=["recordId"], partitioning=None).column("recordId").to_pylist()
    kept = [str(record(number)["recordId"]) for number in (*range(100), *range(200, 207))]
    flip(path)
    path.rename(tmp_path / path.name)
    operations = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    (statement,) = re.findall(r"```sql\n(COPY.*?)```", operations, re.DOTALL)
    monkeypatch.chdir(root.parent)
    duckdb.sql(statement)
    assert main(["ingest", "rest.parquet", "--data", "new", "--no-progress"]) == 0
    lines = [
        json.loads(line)
        for path in segments(root.parent / "new", "notifications")
        for line in path.read_text().splitlines()
    ]
    assert [line["record"]["recordId"] for line in lines] == [each for each in kept if each not in lost]
    assert verify(root.parent / "new").ok


def test_verify_says_what_to_do(broken: Path) -> None:
    """About each difference."""
    report = verify(broken).to_json()
    assert {"parquet", "segment", "notification"} <= {each["kind"] for each in report["differences"]}
    for each in report["differences"]:
        assert ("oncelake rebuild --mend" in each["repair"]) == (each["kind"] not in ("index", "summary", "rollup"))


def letters_of(root: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in sorted((root / "rejected").glob("*.jsonl"))
        for line in path.read_bytes().splitlines()
    ]


@pytest.fixture
def lettered(root: Path) -> Path:
    """With several segments of dead letters."""
    lake = opened(root)
    for number in range(40):
        lake.post(b'[{"recordId": %d}, {"recordId": %d, "unit": "%s"}]' % (number, number, b"x" * 60))
    lake.close()
    assert len(list((root / "rejected").glob("*.jsonl"))) > 2
    return root


@pytest.mark.parametrize("which", ["first", "newest"])
@pytest.mark.parametrize("how", [*DAMAGES, "emptied"])
def test_damaged_dead_letters_can_be_given_up(
    lettered: Path, which: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not by themselves; all that can be read stays, what there was is in quarantine, and new letters follow."""
    before = letters_of(lettered)
    path = sorted((lettered / "rejected").glob("*.jsonl"))[0 if which == "first" else -1]
    lines = path.read_bytes().splitlines()
    DAMAGES.get(how, lambda path: path.write_bytes(b""))(path)
    assert main(["rebuild", "--mend", "--data", str(lettered)]) == 1
    assert f"lost: {path.relative_to(lettered)}" in capsys.readouterr().out
    assert main(["rebuild", "--mend", "--accept-loss", "rejected", "--data", str(lettered)]) == 0
    assert "given up but for" in capsys.readouterr().out
    assert verify(lettered).ok
    kept = letters_of(lettered)
    assert [each for each in before if each in kept] == [each for each in kept if each in before]
    lost = {"flipped": 1, "cut": 1}.get(how, len(lines))
    assert len(kept) in (len(before) - lost, len(before))  # a flip may leave JSON behind
    lake = opened(lettered)
    lake.post(b'[{"recordId": 1000}]')
    lake.close()
    assert verify(lettered).ok and len(letters_of(lettered)) == len(kept) + 1
    assert bool(list((lettered / QUARANTINE).glob("rejected-*"))) == (how != "removed")


def test_giving_up_may_be_killed_at_any_call(lettered: Path, tmp_path: Path) -> None:
    """And be run again."""
    paths = sorted((lettered / "rejected").glob("*.jsonl"))
    DAMAGES["cut"](paths[0])
    DAMAGES["cut"](paths[-1])
    before = [line for path in paths for line in path.read_bytes().split(b"\n")[:-1] if line.endswith(b"}")]

    def give_up(root: Path) -> Mended:
        return mend(root, Disk(), lambda _: None, give_up_letters=True)

    shutil.copytree(lettered, tmp_path / "count" / "data")
    with faulty(FaultyOs(tmp_path / "count" / "data")) as system:
        give_up(tmp_path / "count" / "data")
    for at in some_of(len(system.calls)):
        root = tmp_path / "state" / "data"
        shutil.copytree(lettered, root)
        with faulty(FaultyOs(root, at, FAULTS[at // EVERY % 2])), pytest.raises(Crash):
            give_up(root)
        assert give_up(root).hopeless == [], (at, system.calls[at - 1])
        opened(root).close()
        assert [
            line for path in sorted((root / "rejected").glob("*.jsonl")) for line in path.read_bytes().splitlines()
        ] == before
        shutil.rmtree(root.parent)


def test_a_loss_is_accepted_of_what_was_mended_only(root: Path) -> None:
    """Wrong usage without `--mend`."""
    assert main(["rebuild", "--accept-loss", "rejected", "--data", str(root)]) == 2
