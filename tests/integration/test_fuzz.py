"""Each decoder under a coverage-guided fuzzer for seconds, a minute in all; `make fuzz` for ten minutes each."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = int(os.environ.get("ONCELAKE_TEST_FUZZ_S", "8"))
TARGETS = ("single", "ndjson", "json", "csv", "gzip", "zstd", "parquet", "arrow")


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no build for this Python")
@pytest.mark.parametrize("target", TARGETS)
def test_a_decoder_refuses_what_it_cannot_read_and_its_fast_path_is_exact(tmp_path: Path, target: str) -> None:
    """An `InputError` or the records; the bytes that break this are in the message."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    found = subprocess.run(
        [sys.executable, "-m", "tests.support.fuzz", target, str(SECONDS), str(corpus)],
        capture_output=True,
        check=False,
        cwd=ROOT,
        timeout=120 + 2 * SECONDS,
    )
    broken = [path.read_bytes() for path in corpus.glob("*-*") if not path.name.startswith("seed-")]
    assert found.returncode == 0 and not broken, (broken, found.stderr.decode("utf-8", "replace")[-4_000:])
    tried = re.search(rb"number_of_executed_units: (\d+)", found.stderr)
    assert tried is not None and int(tried[1]) >= 50, found.stderr[-4_000:]
