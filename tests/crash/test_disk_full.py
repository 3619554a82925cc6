"""A small file system that fills up: writers are told so, readers go on, nothing is lost, and room is all it takes.

`ONCELAKE_TEST_FULL` sets the number of rounds, `ONCELAKE_TEST_SEED` the seed.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import store.store
from store.errors import DiskFullError
from store.files import Disk, is_disk_full
from store.verify import verify
from tests.support.direct import assert_holds, record_of
from tests.support.model import Model
from tests.support.scenarios import JOURNAL_BYTES, Run

ROUNDS = int(os.environ.get("ONCELAKE_TEST_FULL", "10"))
SEED = int(os.environ.get("ONCELAKE_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A tmpfs of 3 MiB and 300 inodes."""
    monkeypatch.setattr(store.store, "_JOURNAL_BYTES", JOURNAL_BYTES)
    command = ["mount", "-t", "tmpfs", "-o", "size=3m,nr_inodes=300", "oncelake-test", str(tmp_path)]
    if sys.platform != "linux" or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("a small file system needs root and mount")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def use_up_bytes(where: Path, leave: int) -> None:
    """Leave so many bytes."""
    found = os.statvfs(where)
    with contextlib.suppress(OSError), (where / "filler").open("ab", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, max(found.f_bavail * found.f_bsize - leave, 1) + file.tell())


def use_up_inodes(where: Path, leave: int) -> None:
    """Leave so many inodes."""
    (where / "fillers").mkdir()
    for number in range(max(os.statvfs(where).f_favail - leave, 0)):
        (where / "fillers" / str(number)).touch()


def make_room(where: Path) -> None:
    """Give all of it back."""
    (where / "filler").unlink(missing_ok=True)
    for path in (where / "fillers").glob("*"):
        path.unlink()
    if (where / "fillers").exists():
        (where / "fillers").rmdir()


def work(run: Run, chance: random.Random) -> bool:
    """A commit and perhaps a flush and a merge; False where there was no room for it."""
    first = len(run.model.stored)
    try:
        run.post([record_of(number) for number in range(first, first + chance.randint(1, 20))])
        if chance.random() < 0.3:
            run.store.flush_once()
        if chance.random() < 0.3:
            run.store.tiers.merge_once()
        run.store.write_committed()
    except DiskFullError:
        return False
    except OSError as error:
        assert is_disk_full(error), error
        return False
    return True


@pytest.mark.parametrize("way", ["bytes", "inodes", "in mid-commit"])
def test_a_full_disk_is_an_answer_and_room_is_all_it_takes(way: str, small: Path) -> None:
    """Refused while it is full, readable all the time, and going on by itself in the same process."""
    print(f"seed {SEED}: ONCELAKE_TEST_SEED={SEED}")
    chance = random.Random(f"{SEED} {way}")
    refused = 0
    for number in range(-(-ROUNDS // 3)):
        root = small / f"data-{number}"
        run = Run(root, Disk(), Model())
        for _ in range(chance.randint(1, 4)):
            assert work(run, chance)
        if way == "bytes":
            use_up_bytes(small, chance.randrange(40_000))
        elif way == "inodes":
            use_up_inodes(small, chance.randrange(4))
        filling = threading.Timer(chance.uniform(0, 0.05), use_up_bytes, (small, chance.randrange(8_000)))
        if way == "in mid-commit":
            filling.start()
        tries = 0
        while (fits := work(run, chance)) and tries < 40:
            tries += 1
        refused += not fits
        if filling.is_alive():
            filling.join()
        for _ in range(3):  # it stays full, and readers go on
            assert run.store.find("id-0") is not None
            work(run, chance)
        make_room(small)
        for _ in range(3):
            assert work(run, chance)
        run.store.flush_once()
        assert run.store.failure is None
        assert_holds(run.store, run.model)
        run.close()
        again = Run(root, Disk(), run.model)
        assert_holds(again.store, run.model)
        again.close()
        assert verify(root).differences == []
        subprocess.run(["rm", "-rf", root], check=True)
        del run, again
        gc.collect()  # what is mapped would keep its inode
    assert refused
    print(f"{way}: refused in {refused} of {-(-ROUNDS // 3)} rounds")
