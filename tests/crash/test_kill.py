"""`kill -9` of the real service at random moments, again and again over one data directory, and then the next one.

What was answered is stored once, what was dropped is finished with a receipt that is right to the count, and `verify`
finds no difference. `ONCELAKE_TEST_KILLS` sets the number of kills of each scenario, `ONCELAKE_TEST_SEED` the seed
that a failure prints.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.support.service import Service, oncelake, wait_until

KILLS = int(os.environ.get("ONCELAKE_TEST_KILLS", "67"))
SEED = int(os.environ.get("ONCELAKE_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
BULK_RECORDS = 60_000
KILLS_OF_A_STORE = 24
"""More would make every start of a store without flushes longer than the one before."""
ASKED = 700
"""Of the answered records of each store."""


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


def bulk_file(inbox: Path, name: str, records: int) -> dict[str, int]:
    """Drop a file with duplicates, a conflict and broken lines in it; returns what its receipt must count."""
    lines = [json.dumps(record(f"{name}-{number}", number)) for number in range(records)]
    lines += [lines[number] for number in range(0, records, 100)]  # duplicates
    lines += [json.dumps(record(f"{name}-{number}", number + 1)) for number in range(0, records, 1000)]  # conflicts
    lines += ["{broken", '{"recordId":"x"}'] * 3
    extra = lines[records:]
    random.Random(name).shuffle(extra)
    lines[records:] = extra
    hidden = inbox / f".{name}"
    hidden.write_text("\n".join(lines) + "\n")
    hidden.rename(inbox / f"{name}.ndjson")
    return {
        "received": len(lines),
        "accepted": records,
        "duplicate": len(range(0, records, 100)),
        "conflict": len(range(0, records, 1000)),
        "rejected": 6,
    }


class Poster(threading.Thread):
    """A client that posts single records until the service goes away, and remembers what was answered."""

    def __init__(self, url: str, prefix: str) -> None:
        super().__init__()
        self.url = url
        self.prefix = prefix
        self.answered: dict[str, int] = {}

    def run(self) -> None:
        """Post."""
        number = 0
        with httpx.Client(timeout=30) as client:
            while True:
                record_id = f"{self.prefix}-{number}"
                try:
                    answer = client.post(f"{self.url}/records", json=record(record_id, number))
                except httpx.TransportError:
                    return
                assert answer.status_code == 201, answer.text
                self.answered[record_id] = answer.json()["seq"]
                number += 1


def assert_whole(service: Service, answered: dict[str, int]) -> None:
    """Every answered record is there, under the seq that was answered; `verify` is clean beside the service."""
    with httpx.Client(timeout=30) as client:
        for record_id, seq in answered.items():
            found = client.get(f"{service.url}/records/{record_id}")
            assert found.status_code == 200 and found.json()["seq"] == seq, (record_id, seq, found.text)


def assert_verified(data: Path) -> None:
    """`oncelake verify` finds no difference."""
    verified = oncelake("verify", data=data)
    assert verified.returncode == 0, verified.stdout[-4000:] + verified.stderr[-4000:]


@pytest.mark.parametrize(
    ("scenario", "settings"),
    [
        ("bulk", {"oncelake_store__flush_interval_s": "30"}),
        ("singles", {"oncelake_store__flush_interval_s": "30"}),
        (
            "flush",
            {
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
    longest = 0.0
    for first in range(0, KILLS, KILLS_OF_A_STORE):
        with tempfile.TemporaryDirectory(dir=tmp_path) as directory:
            kills = min(KILLS_OF_A_STORE, KILLS - first)
            root = Path(directory) / "data"
            started = kill_again_and_again(root, settings, kills, chance, has_files=scenario != "singles")
            longest = max(longest, started)
    print(f"{scenario}: {KILLS} kills, the longest start after one took {longest:.1f} s")


def kill_again_and_again(
    data: Path, settings: dict[str, str], kills: int, chance: random.Random, *, has_files: bool
) -> float:
    """So many kills of one store, and what it holds after the last one. The seconds of its longest start.

    After one in six there is another that does not count, before the service is up again: in the recovery.
    """
    service = Service(data, **settings)
    answered: dict[str, int] = {}
    expected: dict[str, dict[str, int]] = {}
    longest = 0.0
    try:
        for kill in range(kills):
            if kill and chance.random() < 1 / 6:
                service.begin()
                time.sleep(chance.uniform(0.2, 1.5))
                service.kill()
            begun = time.monotonic()
            service.start()
            longest = max(longest, time.monotonic() - begun)
            if has_files and (kill % 4 == 0 or service.inbox_is_empty()):
                expected[f"file-{kill}.ndjson"] = bulk_file(data / "inbox", f"file-{kill}", BULK_RECORDS)
            posters = [Poster(service.url, f"{kill}-{number}") for number in range(4)]
            for poster in posters:
                poster.start()
            time.sleep(chance.uniform(0.0, 0.8))
            service.kill()
            for poster in posters:
                poster.join()
                answered |= poster.answered
        assert_verified(data)
        service.start()
        wait_until(service.inbox_is_empty, 120)
        wait_until(lambda: len(service.receipts()) == len(expected))
        assert_whole(service, dict(chance.sample(sorted(answered.items()), min(ASKED, len(answered)))))
        for name, receipt in service.receipts().items():
            assert {key: receipt[key] for key in expected[name]} == expected[name], name
        assert service.stop() == 0
        assert_verified(data)
    finally:
        service.__exit__()
    stored = oncelake("aggregate", "--include", "totals", "--format", "json", data=data)
    count = sum(total["count"] for total in json.loads(stored.stdout)["totals"])
    in_files = sum(counts["accepted"] for counts in expected.values())
    assert in_files + len(answered) <= count <= in_files + len(answered) + 4 * kills  # one in flight for each client
    return longest
