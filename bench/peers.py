"""What the peers need: Debian's packages, and a virtual environment of their own.

chDB brings pandas along, and pandas dateutil, which pyarrow would then use in the service: the peers' libraries stay
out of its environment, unless they are there already (extra `bench`).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.measure import Skip, say

__all__ = ["debian", "interpreter"]


def debian(package: str, program: str) -> Path:
    """The path of a program, from Debian's package where it is missing and this is root."""
    if found := _program(program):
        return found
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Skip(f"{program} is not installed: apt-get install {package}")
    say(f"  apt-get install {package}")
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}  # installs, starts nothing
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", package]):
        subprocess.run(command, check=False, capture_output=True, env=environ)
    if found := _program(program):
        return found
    raise Skip(f"{package} cannot be installed: apt-get install {package}")


def _program(name: str) -> Path | None:
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = versions[-1] if versions else shutil.which(name)
    return Path(found) if found else None


@functools.cache
def interpreter(module: str, package: str) -> str:
    """A Python that has a module: this one, or one in an environment for the peers that is kept."""
    if importlib.util.find_spec(module):
        return sys.executable
    environment = Path(os.environ.get("ONCELAKE_BENCH_PEERS", Path(tempfile.gettempdir()) / "oncelake-bench-peers"))
    python = environment / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=False, capture_output=True)
    if subprocess.run([python, "-c", f"import {module}"], check=False, capture_output=True).returncode:
        say(f"  pip install {package}")
        subprocess.run([python, "-m", "pip", "install", "--quiet", package], check=False, capture_output=True)
    if subprocess.run([python, "-c", f"import {module}"], check=False, capture_output=True).returncode:
        raise Skip(f"{package} cannot be installed: pip install {package}")
    return str(python)
