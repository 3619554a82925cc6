"""`oncelake verify`: the proof, as a JSON report."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from service.config import Config
from store.errors import OncelakeError
from store.verify import verify as prove

__all__ = ["verify"]


def verify(config: Config) -> int:
    """Prove that everything on disk agrees; 1 on any difference."""
    root = Path(config.store.data_dir)
    if not root.is_dir():
        raise OncelakeError(f"{root} is no data directory of oncelake")
    report = prove(root)
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(report.to_json()), indent=2) + b"\n")
    return 0 if report.ok else 1
