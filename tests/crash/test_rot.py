"""Bit flips, truncations and zeroed tails in every kind of file: no wrong answer passes in silence.

Of a stopped store one file is damaged. Then one of these must hold, and the campaign counts them:

- `refused`: the start raises an error of ours that names the file;
- `whole`: the store starts, and every part and every answer is the model's: the damage is in what is derived and was
  made anew, or in bytes that nothing depends on;
- `named`: a question raises an error that names the file, or `verify` lists it.

Anything else fails the test: a wrong answer (`SILENT`, or `named, after a wrong answer`), an error that does not say
which file it is about (`unnamed`), a process that is ended by a signal (`ended`). `ONCELAKE_TEST_ROT` sets the number
of damages, `ONCELAKE_TEST_SEED` the seed.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.trials import in_memory

DAMAGES = int(os.environ.get("ONCELAKE_TEST_ROT", "500"))
SEED = int(os.environ.get("ONCELAKE_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
SHARDS = 2
LOUD = ("refused", "whole", "named")


def tried(memory: Path, first: int, after: int) -> list[dict[str, str]]:
    """What became of each damage, in processes of their own: one that is ended by a signal is told as `ended`."""
    results: list[dict[str, str]] = []
    while first < after:
        worker = subprocess.run(
            [sys.executable, "-m", "tests.support.damage", str(memory), str(SEED), str(first), str(after)],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            cwd=Path(__file__).parents[2],
        )
        lines = [json.loads(line) for line in worker.stdout.splitlines()]
        results.extend(line for line in lines if "found" in line)
        assert lines, "the worker did not begin"
        first = lines[-1]["number"] + 1
        if "found" not in lines[-1]:
            results.append({**lines[-1], "found": f"ended: {worker.returncode}"})
    return results


@pytest.mark.parametrize("shard", range(SHARDS))
def test_no_damage_gives_a_wrong_answer_in_silence(shard: int, tmp_path: Path) -> None:
    """A damaged file is refused, named, made anew, or nothing depends on what changed in it; never silence."""
    print(f"seed {SEED}: ONCELAKE_TEST_SEED={SEED}")
    each = DAMAGES // SHARDS
    with in_memory(tmp_path) as memory:
        results = tried(memory, shard * each, (shard + 1) * each)
    counts = Counter(f"{result['kind']}: {result['found'].partition(':')[0]}" for result in results)
    print("\n".join(f"{count:6} {what}" for what, count in sorted(counts.items())))
    bad = [f"{result['how']}: {result['found']}" for result in results if result["found"].partition(":")[0] not in LOUD]
    assert len(results) == each
    assert not bad, "\n".join(bad[:40])
