"""Power cuts of an ext4 on a loop device in memory, shut down by its ioctl: what was answered is there afterwards.

`ONCELAKE_TEST_CUTS` sets the number of cuts, `ONCELAKE_TEST_SEED` the seed.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.trials import in_memory

CUTS = int(os.environ.get("ONCELAKE_TEST_CUTS", "50"))
SEED = int(os.environ.get("ONCELAKE_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)


def can_cut(directory: Path) -> bool:
    """Whether this machine mounts an ext4 of ours."""
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("mkfs.ext4"):
        return False
    image, mounted = directory / "probe.img", directory / "probe"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(8 << 20)
    made = subprocess.run(["mkfs.ext4", "-q", "-F", image], check=False, capture_output=True).returncode == 0
    found = made and subprocess.run(["mount", "-o", "loop", image, mounted], check=False, capture_output=True)
    if not found or found.returncode:
        return False
    subprocess.run(["umount", mounted], check=True)
    image.unlink()
    return True


def test_what_was_answered_survives_power_cuts(tmp_path: Path) -> None:
    """Commits, flushes and merges are cut off at random moments, and the next start finds all that was answered."""
    print(f"seed {SEED}: ONCELAKE_TEST_SEED={SEED}")
    with in_memory(tmp_path) as directory:
        if not can_cut(directory):
            pytest.skip("power cuts need root, loop devices and mkfs.ext4")
        cut = subprocess.run(
            [sys.executable, "-m", "tests.support.cutting", str(directory), str(SEED), str(CUTS)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            cwd=Path(__file__).parents[2],
        )
        if os.path.ismount(directory / "mounted"):
            subprocess.run(["umount", directory / "mounted"], check=True)
    print(cut.stdout[-4000:])
    assert cut.returncode == 0, f"seed {SEED}: {cut.stdout[-4000:]}"
    assert f"{CUTS} power cuts" in cut.stdout
