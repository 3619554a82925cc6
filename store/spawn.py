"""Processes of our own beside the service: a module of this code, run by the same Python."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["spawned"]

_ROOT = str(Path(__file__).parents[1])


def spawned(module: str, arguments: Sequence[str], **how: Any) -> subprocess.Popen[bytes]:
    """`python -m MODULE ARGUMENTS`, with what `subprocess.Popen` is to know; not of the working directory."""
    path = os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH"))))
    environ = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen([sys.executable, "-P", "-m", module, *arguments], env=environ, **how)
