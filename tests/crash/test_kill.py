"""`kill -9` of the real service at random moments, again and again over one data directory, and then the next one.

What was answered is stored once, what was dropped is finished with a receipt that is right to the count, and `verify`
finds no difference. `ONCELAKE_TEST_KILLS` sets the number of kills of each scenario, `ONCELAKE_TEST_SEED` the seed
that a failure prints.
"""

from __future__ import annotations

import functools
import http.client
import json
import os
import random
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.support.forking import Forks
from tests.support.service import Service, oncelake, wait_until

KILLS = int(os.environ.get("ONCELAKE_TEST_KILLS", "67"))
SEED = int(os.environ.get("ONCELAKE_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
BULK_RECORDS = 20_000
CHUNK_ROWS = "4096"
"""Of a commit of a bulk file. With more, most kills would come before the first commit after a start."""
LOAD_S = 0.8
"""The longest time from a start to a kill; half of the kills come in the first eighth of it."""
RECOVERY_S = 0.4
"""The longest time from a start to a kill in the recovery."""
KILLS_OF_A_STORE = 48
"""More would make every start of a store without flushes longer than the one before."""
ASKED = 200
"""Of the answered records of each store, by their id; all of them are looked for in the answer of all records."""
ARROW = "application/vnd.apache.arrow.stream"


def record(record_id: str, number: int) -> dict[str, str | int]:
    """A record that is a function of its id and number."""
    return {
        "recordId": record_id,
        "time": f"2024-03-{1 + number % 28:02d}T12:00:00Z",
        "sourceId": f"source-{number % 3}",
        "destinationId": f"dest-{number % 50}",
        "type": "positive" if number % 3 else "negative",
        "value": number % 20_000,
        "unit": "SEK" if number % 7 else "kg",
        "reference": f"invoice-{number % 500}",
    }


@functools.cache
def lines_of(name: str, records: int) -> str:
    """So many records of a file."""
    return "\n".join(json.dumps(record(f"{name}-{number}", number)) for number in range(records))


def bulk_file(inbox: Path, name: str, records: int) -> dict[str, int]:
    """Drop a file with duplicates, a conflict and broken lines in it; returns what its receipt must count."""
    same, others = range(0, records, 100), range(0, records, 1000)
    extra = [json.dumps(record(f"{name}-{number}", number)) for number in same]
    extra += [json.dumps(record(f"{name}-{number}", number + 1)) for number in others]
    extra += ["{broken", '{"recordId":"x"}'] * 3
    random.Random(name).shuffle(extra)
    lines = lines_of("{name}", records).replace("{name}", name)
    hidden = inbox / f".{name}"
    hidden.write_text("\n".join([lines, *extra, ""]))
    hidden.rename(inbox / f"{name}.ndjson")
    return {
        "received": records + len(extra),
        "accepted": records,
        "duplicate": len(same),
        "conflict": len(others),
        "rejected": 6,
    }


class Poster(threading.Thread):
    """A client that posts single records until the service goes away, and remembers what was answered."""

    def __init__(self, url: str, prefix: str) -> None:
        super().__init__()
        self.url = httpx.URL(url)
        self.prefix = prefix
        self.answered: dict[str, int] = {}
        self.refused = ""

    def run(self) -> None:
        """Post."""
        client = http.client.HTTPConnection(self.url.host, self.url.port or 0, timeout=30)
        number = 0
        while True:
            record_id = f"{self.prefix}-{number}"
            try:
                client.request(
                    "POST", "/records", json.dumps(record(record_id, number)), {"content-type": "application/json"}
                )
                answer = client.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException):
                client.close()
                return
            if answer.status != 201:
                self.refused = f"{record_id}: {answer.status} {body.decode()}"
                return
            self.answered[record_id] = json.loads(body)["seq"]
            number += 1


@dataclass
class Starts:
    """How long the longest one took, from the start of the process to its address line, and what else was counted."""

    of_forks: float = 0.0
    anew: float = 0.0
    answered: int = 0
    in_recovery: int = 0

    def start(self, service: Service, *, anew: bool = False) -> None:
        """Start it, and see how long it takes."""
        begun = time.monotonic()
        service.start(anew=anew)
        took = time.monotonic() - begun
        if anew:
            self.anew = max(self.anew, took)
        else:
            self.of_forks = max(self.of_forks, took)


def assert_whole(service: Service, answered: dict[str, int], in_files: int, in_flight: int) -> None:
    """Every answered record is there, once and under the seq that was answered, and besides only what may be."""
    found = httpx.get(f"{service.url}/records/aggregations", headers={"accept": ARROW}, timeout=60)
    assert found.status_code == 200, found.text
    with pa.ipc.open_stream(found.content) as stream:
        stored = stream.read_all()
    assert pc.count_distinct(stored["recordId"]).as_py() == len(stored)
    assert in_files + len(answered) <= len(stored) <= in_files + len(answered) + in_flight
    places = pc.index_in(pa.array(answered, pa.string()), stored["recordId"])
    assert places.null_count == 0, [each for each, place in zip(answered, places, strict=True) if not place.is_valid]
    seqs = pa.table({"answered": pa.array(answered.values(), pa.int64()), "stored": stored["seq"].take(places)})
    wrong = seqs.filter(pc.field("answered") != pc.field("stored"))
    assert not len(wrong), wrong.to_pylist()


def assert_found(service: Service, answered: dict[str, int]) -> None:
    """These are found by their ids."""
    with httpx.Client(timeout=30) as client:
        for record_id, seq in answered.items():
            found = client.get(f"{service.url}/records/{record_id}")
            assert found.status_code == 200 and found.json()["seq"] == seq, (record_id, seq, found.text)


def assert_verified(data: Path, forks: Forks) -> None:
    """`oncelake verify` finds no difference."""
    verified = oncelake("verify", data=data, forks=forks)
    assert verified.returncode == 0, verified.stdout[-4000:] + verified.stderr[-4000:]


@pytest.mark.parametrize(
    ("scenario", "settings"),
    [
        ("bulk", {"oncelake_store__flush_interval_s": "30", "oncelake_ingest__chunk_rows": CHUNK_ROWS}),
        ("singles", {"oncelake_store__flush_interval_s": "30"}),
        (
            "flush",
            {
                "oncelake_ingest__chunk_rows": CHUNK_ROWS,
                "oncelake_store__flush_interval_s": "0.05",
                "oncelake_store__flush_rows": "5000",
                "oncelake_store__compact_rest_s": "0.01",
                "oncelake_store__compact_grace_s": "0.1",
            },
        ),
    ],
)
def test_nothing_answered_is_lost_and_nothing_is_stored_twice(
    tmp_path: Path, scenario: str, settings: dict[str, str]
) -> None:
    """The service is killed at random moments while it takes a bulk file, single records, or flushes and compacts."""
    print(f"seed {SEED}: ONCELAKE_TEST_SEED={SEED}")
    chance = random.Random(f"{SEED} {scenario}")
    starts = Starts()
    with Forks() as forks:
        for first in range(0, KILLS, KILLS_OF_A_STORE):
            kills = min(KILLS_OF_A_STORE, KILLS - first)
            service = Service(tmp_path / str(first) / "data", forks=forks, **settings)
            service.data.parent.mkdir()
            kill_again_and_again(service, forks, kills, chance, starts, has_files=scenario != "singles")
            shutil.rmtree(service.data.parent)  # one that is not whole stays
    print(
        f"{scenario}: {KILLS} kills and {starts.in_recovery} in a recovery, {starts.answered} records answered, "
        f"the longest start took {starts.anew:.1f} s, and {starts.of_forks:.1f} s of those that were forked"
    )


def kill_again_and_again(
    service: Service, forks: Forks, kills: int, chance: random.Random, starts: Starts, *, has_files: bool
) -> None:
    """So many kills of one store, and what it holds after the last one.

    After one in six there is another that does not count, before the service is up again: in the recovery. All starts
    are forks but two: one before a kill, and the one after the last kill.
    """
    data = service.data
    answered: dict[str, int] = {}
    expected: dict[str, dict[str, int]] = {}
    anew = chance.randrange(kills)
    try:
        for kill in range(kills):
            if kill and chance.random() < 1 / 6:
                service.begin()
                time.sleep(chance.uniform(0.0, RECOVERY_S))
                service.kill()
                starts.in_recovery += 1
            starts.start(service, anew=kill == anew)
            if has_files and (kill % 16 == 0 or (chance.random() < 1 / 3 and service.inbox_is_empty())):
                expected[f"file-{kill}.ndjson"] = bulk_file(data / "inbox", f"file-{kill}", BULK_RECORDS)
            posters = [Poster(service.url, f"{kill}-{number}") for number in range(4)]
            for poster in posters:
                poster.start()
            time.sleep(LOAD_S * chance.random() ** 3)
            service.kill()
            for poster in posters:
                poster.join()
                assert not poster.refused
                answered |= poster.answered
        assert_verified(data, forks)
        starts.start(service, anew=True)
        wait_until(service.inbox_is_empty, 120)
        wait_until(lambda: len(service.receipts()) == len(expected))
        in_files = sum(counts["accepted"] for counts in expected.values())
        assert_whole(service, answered, in_files, in_flight=4 * kills)  # one in flight for each client
        assert_found(service, dict(chance.sample(sorted(answered.items()), min(ASKED, len(answered)))))
        for name, receipt in service.receipts().items():
            assert {key: receipt[key] for key in expected[name]} == expected[name], name
        starts.answered += len(answered)
        assert service.stop() == 0
        assert_verified(data, forks)
    finally:
        service.__exit__()
