"""Random damage to records and outboxes, and then `oncelake rebuild --mend`: made whole or named, never made wrong.

Of a stopped store one to three files get a flipped bit, are cut, end in zeros, or are removed. Then one of these must
hold, and the campaign counts them:

- `mended`: nothing is said to be lost; the store starts, and every part and every answer is the model's;
- `lost`: what is said to be lost is among the damaged files, and no answer is wrong without an error or a difference
  that names one of them. A single file is lost only where it has lines that are not flushed.

`ONCELAKE_TEST_MEND` sets the number of damaged stores, `ONCELAKE_TEST_SEED` the seed.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

import store.store
from outbox.mend import mend
from store.errors import OncelakeError
from store.files import Disk
from store.verify import verify
from tests.support.damage import WHOLE, damage, outcome
from tests.support.direct import assert_holds
from tests.support.model import Model
from tests.support.promises import History
from tests.support.scenarios import JOURNAL_BYTES, Run, made
from tests.support.trials import in_memory

STORES = int(os.environ.get("ONCELAKE_TEST_MEND", "40"))
SEED = int(os.environ.get("ONCELAKE_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
KINDS = ("records/**/*.parquet", "outbox/notifications/*.jsonl", "outbox/alerts/*.jsonl")
VERIFIED_EVERY = 10


@dataclass
class Whole:
    """The store before it is damaged, without the private links that would make removals harmless."""

    root: Path
    model: Model
    history: History
    hot: set[str]


def whole(root: Path) -> Whole:
    """Make it; `hot` are the segments with lines that are not flushed."""
    root.parent.mkdir()
    model = made(WHOLE, root)
    run = Run(root, None, model)
    log, flushed = "outbox/notifications", run.store.flushed
    hot = {each.path for each in run.store.state.segments[log] if (each.last_seq or 0) > flushed}
    hot.add(run.store.state.ends[log].path)
    run.close()
    shutil.rmtree(root / "internal/links")
    history = History()
    history.committed(root, {})
    history.finished()
    return Whole(root, model, history, hot)


def harmed(root: Path, chance: random.Random) -> list[tuple[str, str]]:
    """Damage one to three files: (name, what became of it)."""
    paths = [path for kind in KINDS for path in sorted(root.glob(kind))]
    found = []
    for path in chance.sample(paths, chance.choice((1, 1, 2, 3))):
        if chance.random() < 0.25:
            path.unlink()
            found.append((str(path.relative_to(root)), "removed"))
        else:
            found.append((str(path.relative_to(root)), damage(path, chance)))
    return found


def result(root: Path, names: list[str], before: Whole, thorough: bool) -> str:
    """What became of a damaged store; see the module."""
    told = mend(root, Disk(fsync=False), lambda _: None)
    stray = [what for what in told.hopeless if not any(name in what for name in names)]
    if stray:
        return f"unnamed: {stray}"
    if told.hopeless:
        if len(names) == 1 and names[0] not in before.hot:
            return f"lost for no reason: {told.hopeless}"
        found = [outcome(root, name, before.history, before.model) for name in names]
        return "lost" if {"refused", "named", "whole"} & set(found) else f"lost, and {found}"
    run = Run(root, None, before.model)
    try:
        assert_holds(run.store, before.model)
    finally:
        run.close()
    if thorough and not (report := verify(root)).ok:
        return f"differs: {report.differences}"
    return "mended"


def test_what_is_damaged_is_made_again_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file whose records are elsewhere is always mended; several are, where they do not hold the same records."""
    print(f"seed {SEED}: ONCELAKE_TEST_SEED={SEED}")
    monkeypatch.setattr(store.store, "_JOURNAL_BYTES", JOURNAL_BYTES)
    counts: Counter[str] = Counter()
    bad = []
    with in_memory(tmp_path) as memory:
        before = whole(memory / "base" / "data")
        for number in range(STORES):
            root = memory / "state" / "data"
            shutil.rmtree(root.parent, ignore_errors=True)
            shutil.copytree(before.root, root)
            harm = harmed(root, random.Random(f"{SEED} {number}"))
            try:
                found = result(root, [name for name, _ in harm], before, number % VERIFIED_EVERY == 0)
            except (OncelakeError, AssertionError) as error:
                found = f"failed: {error!r}"
            counts[f"{len(harm)} damaged: {found.partition(':')[0]}"] += 1
            if found not in ("mended", "lost"):
                bad.append(f"{number}: {harm}: {found}")
    print("\n".join(f"{count:6} {what}" for what, count in sorted(counts.items())))
    assert not bad, "\n".join(bad[:20])
