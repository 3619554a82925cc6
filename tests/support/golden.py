"""Golden files: the exact bytes of what others read.

`ONCELAKE_UPDATE_GOLDEN=1 pytest …` writes them anew; look at the difference before it is committed.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["assert_golden"]

_DIRECTORY = Path(__file__).parents[1] / "golden"


def assert_golden(name: str, found: bytes) -> None:
    """That `found` is what the file holds, to the byte (the line break at its end is the file's)."""
    path = _DIRECTORY / name
    if os.environ.get("ONCELAKE_UPDATE_GOLDEN") == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(found + b"\n")
    assert path.exists(), f"{path} is missing: run the test once with ONCELAKE_UPDATE_GOLDEN=1"
    assert found + b"\n" == path.read_bytes()
