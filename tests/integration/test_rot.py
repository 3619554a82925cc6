"""Rotten bytes: found before they are used, named, and never answered from."""

from __future__ import annotations

import errno
import json
import threading
from pathlib import Path

import numpy as np
import pytest

import ingest.scrubber
from ingest.scrubber import Scrubber
from store import ranges, remake
from store.errors import CorruptionError, DamagedFileError
from store.files import Disk
from store.filters import Filters
from store.kinds import KINDS
from store.rot import Pace, checksum_at, known_damage, prove
from store.search import search
from store.snapshot import SealedFile
from store.verify import verify
from tests.support.lake import Lake
from tests.support.service import Service, wait_until


def record(number: int) -> dict[str, object]:
    return {
        "recordId": f"rec-{number}",
        "time": f"2024-03-{1 + number % 2:02}T{number % 24:02}:30:00Z",
        "sourceId": "source-a",
        "destinationId": f"dest-{number % 5}",
        "type": "positive",
        "value": f"{number % 1_000}.5",
        "unit": "SEK",
        "reference": f"invoice-{number % 7}",
    }


def batch(first: int, count: int) -> bytes:
    return json.dumps([record(number) for number in range(first, first + count)]).encode()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A closed store of two days, all flushed, with several runs of each kind."""
    lake = Lake(tmp_path / "data", segment_bytes=3_000)
    for first in range(0, 60, 20):
        lake.post(batch(first, 20))
        lake.store.flush_once()
    lake.close()
    return lake.root


def flip(path: Path, place: float) -> None:
    """One bit, somewhere on the way through the file."""
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("place", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
def test_a_damaged_parquet_file_is_named_where_an_answer_needs_it(root: Path, place: float) -> None:
    """And only there: questions about other days, and records of other files, are answered."""
    expected = Lake(root)
    first_day = expected.aggregate(Filters(end_us=1_709_337_600_000_000))
    expected.close()
    damaged = sorted((root / "records").glob("date=2024-03-02/*.parquet"))[1]
    flip(damaged, place)
    lake = Lake(root)
    assert known_damage(lake.store.files) is None  # nothing was read for it at the start
    assert lake.aggregate(Filters(end_us=1_709_337_600_000_000)) == first_day
    for _ in range(2):
        with pytest.raises(DamagedFileError, match=damaged.name) as caught:
            lake.aggregate(Filters())
        assert caught.value.file == str(damaged.relative_to(root))
    assert lake.store.find("rec-22") is not None
    with pytest.raises(DamagedFileError, match="seqs"):
        lake.store.find("rec-21")
    assert damaged.name in str(known_damage(lake.store.files))
    assert lake.answer(lake.post(batch(100, 2)))["accepted"] == 2
    lake.close()


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("place", [0.01, 0.4, 0.6, 0.95])
def test_damaged_runs_are_found_at_the_start_and_made_anew(
    root: Path, caplog: pytest.LogCaptureFixture, kind: str, place: float
) -> None:
    """Those that are not too large to be read then."""
    flip(min((root / "internal" / kind).iterdir()), place)
    lake = Lake(root)
    assert lake.answer(lake.post(batch(55, 10)))["duplicate"] == 5
    lake.close()
    assert f"runs of the {kind} are made anew" in caplog.text
    assert verify(root).ok


@pytest.mark.parametrize("kind", ["index", "summaries"])
def test_larger_runs_are_read_behind_the_start(root: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A damaged one stops the store and goes into quarantine; the next start makes it anew."""
    monkeypatch.setattr(remake, "_CHECKED_BYTES", 0)
    damaged = min((root / "internal" / kind).iterdir())
    flip(damaged, 0.6)
    lake = Lake(root)
    Scrubber(lake.store, 1.0).check_runs(Pace())
    assert isinstance(lake.store.failure, CorruptionError) and damaged.name in str(lake.store.failure)
    lake.close()
    assert not damaged.exists() and (root / "internal/quarantine" / damaged.name).exists()
    lake = Lake(root)
    assert lake.answer(lake.post(batch(55, 10)))["duplicate"] == 5
    lake.close()
    assert verify(root).ok


def test_nothing_is_merged_from_a_damaged_run(root: Path) -> None:
    """It is read once more right before a merge."""
    lake = Lake(root)
    lake.post(batch(60, 20))
    lake.store.flush_once()
    flip(min((root / "internal/index").iterdir()), 0.6)
    with pytest.raises(CorruptionError, match="start the service again"):
        lake.store.tiers.merge_once()
    lake.close()
    Lake(root).close()
    assert verify(root).ok


def test_the_scrub_finds_what_was_proven_before(root: Path) -> None:
    """A file that rots while the service runs; a mended one is sound again with the next pass."""
    lake = Lake(root)
    lake.aggregate(Filters())
    path = sorted((root / "records").rglob("*.parquet"))[0]
    whole = path.read_bytes()
    flip(path, 0.5)
    scrubber = Scrubber(lake.store, 0.1)
    scrubber.run_once()
    assert path.name in str(known_damage(lake.store.files))
    with pytest.raises(DamagedFileError):
        lake.aggregate(Filters())
    path.write_bytes(whole)
    scrubber.run_once()
    assert known_damage(lake.store.files) is None and lake.aggregate(Filters())["asOf"] == 60
    lake.close()


def test_a_scrub_makes_the_copies_of_filters_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of runs of a flush, and of those of a start: no checksum tells what became of a copy."""
    monkeypatch.setattr(ranges, "RANGE_ROWS", 16)
    lake = Lake(tmp_path / "data")
    lake.post(batch(0, 100))
    lake.store.flush_once()
    for _ in range(2):
        (run,) = lake.store.named_runs("index", {row.name for row in lake.store.tiers.rows})
        assert len(run.pages) > 4
        run._filters = [np.zeros_like(filter_) for filter_ in run._filters]
        run.__dict__.pop("searched", None)
        assert len(search([run], run.hi[0], run.lo[0])) == 0
        Scrubber(lake.store, 1.0).run_once()
        assert len(search([run], run.hi[0], run.lo[0])) == len(run.hi[0])
        lake.restart()
    lake.close()


def test_a_file_that_cannot_be_read_hides_none_behind_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pass goes on and ends, the problem is told until a pass can read all."""
    lake = Lake(root)
    first, *_, last = lake.store.files
    flip(root / last.name, 0.5)

    def unreadable(file: SealedFile, pace: Pace) -> None:
        if file.name == first.name:
            raise OSError(errno.EIO, "bad sector", file.name)
        prove(file, pace)

    scrubber = Scrubber(lake.store, 0.1)
    with monkeypatch.context() as patch:
        patch.setattr(ingest.scrubber, "prove", unreadable)
        scrubber.run_once()
    assert scrubber.passes == 1 and first.name in str(scrubber.problem)
    assert Path(last.name).name in str(known_damage(lake.store.files))
    scrubber.run_once()
    assert scrubber.passes == 2 and scrubber.problem is None
    lake.close()


def test_a_pass_that_fails_is_told_and_made_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody expected ends neither the scrubber nor the service."""
    lake = Lake(root)
    monkeypatch.setattr(ingest.scrubber, "_REST_S", 0.01)
    scrubber = Scrubber(lake.store, 0.1)
    with monkeypatch.context() as patch:
        patch.setattr(ingest.scrubber, "prove", lambda file, pace: 1 // 0)
        scrubber.start()
        wait_until(lambda: scrubber.problem == "the scrub failed: integer division or modulo by zero")
        assert scrubber.alive and lake.store.failure is None
    wait_until(lambda: scrubber.problem is None)
    scrubber.stop()
    lake.close()


def test_a_slow_pass_ends_when_it_is_told(tmp_path: Path) -> None:
    """A file of three MiB at a byte a second would take a month."""
    path = tmp_path / "file"
    Disk().write(path, bytes(3 << 20))
    stopping = threading.Event()
    timer = threading.Timer(0.1, stopping.set)
    timer.start()
    assert checksum_at(path, Pace(1.0, stopping)) is None
    timer.join()


def test_clients_and_operators_are_told_of_damage(root: Path) -> None:
    """A problem with a code of its own that names the file, and a health that is not ok."""
    damaged = sorted((root / "records").rglob("*.parquet"))[0]
    flip(damaged, 0.5)
    with Service(root) as service:
        answer = service.get("/records/aggregations")
        assert answer.status_code == 500
        assert (answer.json()["code"], answer.json()["file"]) == ("corruption", str(damaged.relative_to(root)))
        health = service.get("/health")
        assert health.status_code == 503 and damaged.name in health.json()["components"]["store"]["status"]
        assert service.post(batch(100, 1)).status_code == 200
        wait_until(lambda: service.get("/records/rec-100").status_code == 200)
        assert service.stop() == 0
