"""`oncelake forward` and the servers behind it, killed in mid-stream: what a consumer finds is the outbox.

Here with small counts. `make forwarding` sends 100,000 notifications to each, kills the forwarder 200 times and
each server 20 times.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

from tests.support.lake import Lake
from tests.support.service import oncelake, wait_until
from tests.support.targets import TARGETS, Target

COUNT = int(os.environ.get("ONCELAKE_TEST_FORWARD", "3000"))
KILLS = int(os.environ.get("ONCELAKE_TEST_FORWARD_KILLS", "2"))
SERVER_KILLS = int(os.environ.get("ONCELAKE_TEST_SERVER_KILLS", "1"))
SEED = int(os.environ.get("ONCELAKE_TEST_SEED", str(random.randrange(1 << 32))))
_CAUGHT_UP_S = 300.0
"""For a server that takes its time to start, and a forwarder that waits longer and longer meanwhile."""

RECORD = {
    "recordId": "", "time": "2024-03-01T12:00:00Z", "sourceId": "s", "destinationId": "", "type": "positive",
    "value": "1.5", "unit": "SEK", "reference": "räksmörgås",
}  # fmt: skip


class Bench:
    """A data directory, a configuration, and forwarders that are started over it."""

    def __init__(self, folder: Path, target: Target) -> None:
        self.data = folder / "data"
        self.config = folder / "oncelake.toml"
        self.config.write_text(
            f'[store]\nfsync = false\n[[forward]]\nname = "target"\nurl = "{target.url()}"\nbatch = {target.batch}\n'
            + target.options
        )
        self._folder = folder
        self.records = 0
        self.lake = Lake(self.data, chunk_rows=1_000, segment_bytes=200_000)

    def ingest(self, count: int) -> None:
        """So many records more, in commits of a hundred or so; the forwarder sees them half a second later at most."""
        for first in range(self.records, self.records + count, 500):
            numbers = range(first, min(first + 500, self.records + count))
            body = b"\n".join(
                json.dumps(RECORD | {"recordId": f"r{n}", "destinationId": f"d{n % 50}"}).encode() for n in numbers
            )
            reply = self.lake.post(body, "ndjson")
            assert self.lake.answer(reply)["accepted"] == len(numbers)
        self.records += count

    def is_final(self) -> bool:
        """Whether the forwarder may read everything."""
        path = self.data / "outbox/notifications/committed.json"
        return bool(json.loads(path.read_bytes())["seq"] == self.records)

    def start(self) -> subprocess.Popen[bytes]:
        """`oncelake forward`; it says when it is there."""
        with (self._folder / "forward.log").open("ab") as log:
            return subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "service.cli",
                    "forward",
                    "--data",
                    str(self.data),
                    "--config",
                    str(self.config),
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=Path(__file__).parents[2],
            )

    def seq(self) -> int:
        """Of the checkpoint."""
        path = self.data / "internal/forward/target.json"
        return int(json.loads(path.read_bytes())["seq"]) if path.exists() else 0

    def outbox(self) -> list[bytes]:
        segments = sorted((self.data / "outbox/notifications").glob("*.jsonl"))
        return [line for path in segments for line in path.read_bytes().splitlines()]

    def finish(self) -> None:
        """Whatever is left."""
        done = oncelake("forward", "--once", "--config", str(self.config), data=self.data)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}"


def is_there(process: subprocess.Popen[bytes]) -> bool:
    """Wait until it says so."""
    assert process.stdout is not None
    return process.stdout.readline().startswith(b"oncelake forwards")


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(60)
    assert process.stdout is not None
    process.stdout.close()


def shares_of(count: int, pieces: int) -> list[int]:
    """A number in so many about equal pieces."""
    cuts = [count * piece // pieces for piece in range(pieces + 1)]
    return [after - before for before, after in itertools.pairwise(cuts)]


def check(target: Target, expected: list[bytes]) -> None:
    """Complete and in order; where a message may come twice, it is the same each time."""
    found = target.found()
    if target.is_exact:
        assert len(found) == len(expected) and found == expected, "a message is missing, changed, or there twice"
        return
    assert set(found) == set(expected), "a message is missing or changed"
    if target.in_order:
        assert list(dict.fromkeys(found)) == expected, "messages came out of order"
    first_of: dict[str, list[int]] = defaultdict(list)
    for line in dict.fromkeys(found):
        message = json.loads(line)
        first_of[message["record"]["destinationId"]].append(message["seq"])
    assert all(seqs == sorted(seqs) for seqs in first_of.values())


def struck(target: Target, before: int, todo: int, goal: int) -> bool:
    """Wait until the target has been given `goal` of `todo` messages; whether it had not all of them then."""
    given = 0

    def is_under_way() -> bool:
        nonlocal given
        given = target.count() - before
        return given >= goal

    wait_until(is_under_way, _CAUGHT_UP_S)
    return given < todo


@pytest.mark.parametrize("name", TARGETS)
def test_whoever_is_killed_what_a_consumer_finds_is_the_outbox(tmp_path: Path, name: str) -> None:
    """Nothing is missing; no duplicate where the sink can tell; elsewhere duplicates are the same message.

    Each kill comes when the target has been given some, by chance, of the messages that wait for it, and it is counted
    how often there were more to come.
    """
    chance = random.Random(SEED)
    print(f"ONCELAKE_TEST_SEED={SEED}")
    target = TARGETS[name](tmp_path / "server")
    target.folder.mkdir()
    target.start()
    bench = Bench(tmp_path, target)
    try:
        deaths = SERVER_KILLS if target.can_die else 0
        shares = iter(shares_of(COUNT, KILLS + deaths + 1))
        hits = [0, 0]
        for _ in range(KILLS):
            share = next(shares)
            bench.ingest(share // 2)
            before = target.count()
            process = bench.start()
            bench.ingest(share - share // 2)
            assert is_there(process)
            todo = bench.records - (before if target.is_exact else bench.seq())
            struck(target, before, todo, chance.randint(1, todo - target.batch))
            end(process)
            hits[0] += target.count() - before < todo
            target.keep_up()
        process = bench.start()
        assert is_there(process)
        for _ in range(deaths):
            wait_until(lambda: bench.seq() == bench.records, _CAUGHT_UP_S)
            share, before = next(shares), target.count()
            bench.ingest(share)
            hits[1] += struck(target, before, share, chance.randint(1, share - target.batch))
            target.kill()
            time.sleep(chance.uniform(0.0, 0.7))
            target.again()
        bench.ingest(next(shares))
        end(process)
        wait_until(bench.is_final)
        bench.finish()
        print(f"{name}: {COUNT} messages, {KILLS} and {deaths} kills, {hits[0]} and {hits[1]} in mid-stream")
        assert hits[0] >= KILLS // 2 and hits[1] >= deaths // 2, "the kills came too late"
        assert bench.seq() == COUNT
        check(target, bench.outbox())
    finally:
        bench.lake.close()
        target.stop()
