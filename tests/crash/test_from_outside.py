"""Faults in the calls that SQLite, pyarrow and DuckDB make themselves, put in from outside with strace.

A call of a short history fails with EIO or ENOSPC, once or from then on, or the process is killed at it; the next
start keeps every promise. `ONCELAKE_TEST_OUTSIDE` sets how many faults are tried (more than there are: all),
`ONCELAKE_TEST_SEED` the seed that a failure prints.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import duckdb
import pytest

from store.verify import verify
from tests.support.direct import assert_holds, record_of
from tests.support.model import Model
from tests.support.outside import HISTORY
from tests.support.scenarios import Run
from tests.support.trials import in_memory

ROOT = Path(__file__).parents[2]
FAULTS = int(os.environ.get("ONCELAKE_TEST_OUTSIDE", "8"))
SEED = int(os.environ.get("ONCELAKE_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
CALLS = "write,pwrite64,writev,pwritev,fsync,fdatasync,ftruncate,fallocate"
KINDS = ("error=EIO:when={nth}", "error=ENOSPC:when={nth}", "error=ENOSPC:when={nth}+", "signal=KILL:when={nth}")
_CALL = re.compile(r"^\d+ +(\w+)\(\d+<([^>]+)>")


class Call(NamedTuple):
    """The nth call of its name on a file below the data directory."""

    name: str
    path: str
    nth: int


def run_child(root: Path, *options: str) -> tuple[list[int], str, str]:
    """The history under strace: what was stored after each step, what it said, and the trace."""
    trace = root.parent / "trace"
    shutil.rmtree(root, ignore_errors=True)
    trace.unlink(missing_ok=True)
    command = ["strace", "-f", "-y", "-s", "0", "-o", str(trace), "-e", f"trace={CALLS}", *options]
    done = subprocess.run(
        [*command, sys.executable, "-m", "tests.support.outside", str(root)],
        capture_output=True, text=True, cwd=ROOT, timeout=120, check=False,
    )  # fmt: skip
    return [int(line) for line in done.stdout.splitlines()], done.stderr, trace.read_text()


def calls_of(root: Path) -> Iterator[Call]:
    """Calls of a whole history that `store.files` does not make: all of SQLite, an eighth of the many of pyarrow."""
    stored, said, trace = run_child(root)
    assert len(stored) == len(HISTORY), said
    seen: Counter[tuple[str, str]] = Counter()
    for line in trace.splitlines():
        found = _CALL.match(line)
        if found and found[2].startswith(f"{root}/"):
            name, path = found[1], str(Path(found[2]).relative_to(root))
            seen[name, path] += 1
            is_eighth = name == "write" and seen[name, path] % 8 == 1
            if "catalog.sqlite" in path or (path.endswith((".parquet", ".arrow")) and is_eighth):
                yield Call(name, path, seen[name, path])


def assert_kept(root: Path, answered: int) -> None:
    """What was answered is stored, what was not is stored whole or not at all, all parts agree, and it goes on."""
    seqs = []
    if any(root.glob("records/**/*.parquet")):
        seen = duckdb.sql(f"SELECT seq FROM read_parquet('{root}/records/**/*.parquet', hive_partitioning = true)")
        seqs = [seq for (seq,) in seen.fetchall()]
    assert len(seqs) == len(set(seqs)), "records stand twice in the glob"
    run = Run(root, None, Model())
    try:
        assert max(seqs, default=0) <= run.store.seq
        batches = iter([step for step in HISTORY if isinstance(step, list)])
        while len(run.model.stored) < answered:
            run.model.take(next(batches))
        if run.store.seq > answered:
            run.model.take(next(batches))
        assert_holds(run.store, run.model)
        run.post([record_of(0), record_of(90)])
        run.store.flush_once()
        assert_holds(run.store, run.model)
    finally:
        run.close()
    assert verify(root).differences == []


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, where there is one."""
    with in_memory(tmp_path) as directory:
        yield directory


def test_faults_in_the_calls_of_the_libraries_cost_nothing_that_was_answered(memory: Path) -> None:
    """In calls of SQLite, and in writes of Parquet and Arrow files: EIO, ENOSPC, a disk that stays full, SIGKILL."""
    if not can_trace():
        pytest.skip("no process may be traced here: strace says so")
    print(f"seed {SEED}: ONCELAKE_TEST_SEED={SEED}")
    root = memory / "data"
    faults = [(call, kind) for call in calls_of(root) for kind in KINDS]
    assert {Path(call.path).suffix for call, _ in faults} >= {".sqlite-wal", ".parquet", ".arrow"}
    chosen = random.Random(SEED).sample(faults, min(FAULTS, len(faults)))
    met = 0
    for call, kind in chosen:
        how = f"inject={call.name}:{kind.format(nth=call.nth)}"
        stored, said, trace = run_child(root, "-P", str(root / call.path), "-e", how)
        try:
            assert "AssertionError" not in said, said
            assert_kept(root, stored[-1] if stored else 0)
        except BaseException as error:
            error.add_note(f"seed {SEED}: {call.path}, {how}; {said[-2_000:]}")
            raise
        met += "INJECTED" in trace or "SIGKILL" in trace
    print(f"{len(chosen)} of {len(faults)} faults, {met} met")
    assert met >= 0.9 * len(chosen), "the calls are not those of the history that was recorded"


def can_trace() -> bool:
    """Whether strace may trace here; that it is there is taken for granted."""
    return subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False).returncode == 0
