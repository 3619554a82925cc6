"""Power cuts of a real ext4: rounds of commits, flushes and merges until the file system is shut down under them.

A program of its own: it imports everything once and forks a writer for each round, which the cut ends, and a reader
after it. `python -m tests.support.cutting DIRECTORY SEED ROUNDS` needs root and loop devices; DIRECTORY is in memory.

What was told before the cut began is what was answered. A sync that is under way while ext4 is shut down without its
log may return 0 for what is lost (300 bare loops of `pwrite`, `fdatasync` and tell on Linux 6.18: 28 lost what they
told during the shutdown, none what they told before it). A machine without power has no such answers.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import random
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
import traceback
from pathlib import Path

import store.store
from store.files import Disk
from store.store import Store, StoreSettings
from store.verify import verify
from tests.support.direct import Direct, assert_holds, record_of
from tests.support.model import Model
from tests.support.scenarios import JOURNAL_BYTES

SHUTDOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN."""

LOSING = (0, 2)
"""Its flags: the journal of the file system is written out first (0: default), or not (2: no log flush)."""

MOST_RECORDS = 6
"""Of a commit."""

ROUNDS_OF_A_DISK = 4
RECOVERY_S = 5.0


def write(root: Path, seed: int, answers: int) -> None:
    """Commit the records of `record_of` in their order, and tell after each commit how far it is, until cut off."""
    chance = random.Random(seed)
    opened = Store(StoreSettings(root, segment_bytes=3_000), disk=Disk())
    committer = Direct(opened)
    last = opened.seq + 150  # more than the time before the cut is enough for
    while opened.seq < last:
        first = opened.seq
        committer.take([record_of(number) for number in range(first, first + chance.randint(1, MOST_RECORDS))])
        os.write(answers, b"%d\n" % opened.seq)
        what = chance.random()
        if what < 0.2:
            opened.flush_once()
        elif what < 0.3:
            opened.write_committed()
        elif what < 0.4:
            opened.tiers.merge_once()
    signal.pause()


def read(root: Path, answered: int, told: int, thoroughly: bool) -> None:
    """A start finds all that was answered, in time, and what it finds is the model's; `told` may be in the cut."""
    began = time.monotonic()
    opened = Store(StoreSettings(root, segment_bytes=3_000), disk=Disk())
    assert time.monotonic() - began < RECOVERY_S
    assert answered <= opened.seq <= told + MOST_RECORDS, f"{answered} were answered, {opened.seq} are there"
    model = Model()
    model.take([record_of(number) for number in range(opened.seq)])
    assert_holds(opened, model)
    opened.close()
    if thoroughly:
        assert verify(root).differences == []


def forked(work: object, *arguments: object) -> int:
    """Run a function in a child of this process; its process id."""
    child = os.fork()
    if child:
        return child
    try:
        work(*arguments)  # type: ignore[operator]
        os._exit(0)
    except BaseException:
        if work is not write:  # the cut ends it in the middle of a call
            traceback.print_exc()
        os._exit(1)


def last_told(reads: int, before: int) -> int:
    """The last number in the pipe so far, or `before` if it has none; without a wait while the writer lives."""
    lines = []
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(reads, 1 << 16):
            lines.append(piece)
    whole = b"".join(lines).split(b"\n")
    return int(whole[-2]) if len(whole) > 1 else before


def one_round(mounted: Path, image: Path, seed: int, before: tuple[int, int], *, thoroughly: bool) -> tuple[int, int]:
    """One cut and the start after it; how much was answered by the cut, and told by the end of it."""
    chance = random.Random(seed)
    reads, writes = os.pipe()
    writer = forked(write, mounted / "data", seed, writes)
    os.close(writes)
    if chance.random() < 0.8:  # else the start is cut, too
        select.select([reads], [], [], 30)
    time.sleep(chance.uniform(0.0, 0.5))
    handle = os.open(mounted, os.O_RDONLY)
    os.set_blocking(reads, False)
    answered = last_told(reads, before[0])
    fcntl.ioctl(handle, SHUTDOWN, struct.pack("I", chance.choice(LOSING)))
    os.close(handle)
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    told = max(last_told(reads, answered), before[1])
    os.close(reads)
    subprocess.run(["umount", mounted], check=True)
    subprocess.run(["mount", "-o", "loop", image, mounted], check=True)
    _, status = os.waitpid(forked(read, mounted / "data", answered, told, thoroughly), 0)
    if status:
        raise SystemExit(f"after the cut with seed {seed} ({answered} answered) the store is not whole")
    return answered, told


def main(directory: Path, seed: int, rounds: int) -> None:
    """All rounds; a new file system after every few."""
    logging.disable(logging.CRITICAL)
    store.store._JOURNAL_BYTES = JOURNAL_BYTES
    image, mounted = directory / "disk.img", directory / "mounted"
    mounted.mkdir()
    total = 0
    for number in range(rounds):
        if number % ROUNDS_OF_A_DISK == 0:
            if number:
                subprocess.run(["umount", mounted], check=True)
            image.unlink(missing_ok=True)
            with image.open("wb") as file:
                file.truncate(64 << 20)
            subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
            subprocess.run(["mount", "-o", "loop", image, mounted], check=True)
            shutil.rmtree(mounted / "lost+found")
            last = 0, 0
        before = last
        last = one_round(mounted, image, seed * 1_000_003 + number, before, thoroughly=number % 10 == 9)
        total += last[0] - before[0]
    assert total > 0, "the writers did not get to write"
    subprocess.run(["umount", mounted], check=True)
    print(f"{rounds} power cuts, {total} records answered")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
