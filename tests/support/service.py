"""The real service as a process of its own, on a free port."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.support.forking import Forked, Forks

__all__ = ["Service", "oncelake", "wait_until"]

_START_S = 60.0
_COMMAND_S = 300.0
_ROOT = Path(__file__).parents[2]


class Service:
    """`oncelake serve` over a data directory. With `forks`, a start may be a fork (`tests.support.forking`)."""

    def __init__(self, data: Path, *, config: Path | None = None, forks: Forks | None = None, **settings: str) -> None:
        self.data = data
        self._forks = forks
        self._config = ["--config", str(config)] if config else []
        self._environ = {**os.environ, **{key.upper(): value for key, value in settings.items()}}
        self._process: subprocess.Popen[bytes] | Forked | None = None
        self.url = ""

    def begin(self, *, anew: bool = False) -> None:
        """Start it, and do not wait. `anew`: not as a fork."""
        arguments = ["serve", "--data", str(self.data), "--port", "0", *self._config]
        with (self.data.parent / f"{self.data.name}.log").open("ab") as log:
            if self._forks is not None and not anew:
                self._process = self._forks.start(arguments, self._environ, _ROOT, log)
                return
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service.cli", *arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environ,
                cwd=_ROOT,
            )

    def start(self, *, anew: bool = False) -> Service:
        """Start it and wait for its address line."""
        self.begin(anew=anew)
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline().decode()
        found = re.search(r"http://\S+", line)
        if not found:
            self._process.wait(_START_S)
            raise AssertionError(f"the service did not start: {line!r}\n{self.log()[-4000:]}")
        self.url = found[0].rstrip("/")
        return self

    def log(self) -> str:
        """What it wrote to standard error so far."""
        return (self.data.parent / f"{self.data.name}.log").read_text()

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """`kill -9`, and wait until it is gone."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(_START_S)
        self._close()

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self.wait(_START_S)

    def wait(self, timeout_s: float) -> int:
        """Until it has ended; its exit code."""
        assert self._process is not None
        code = self._process.wait(timeout_s)
        self._close()
        return code

    def _close(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> Service:
        return self.start()

    def __exit__(self, *error: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def post(self, body: bytes, media_type: str = "application/json", **parameters: str) -> httpx.Response:
        """POST /records."""
        headers = {"content-type": media_type}
        return httpx.post(f"{self.url}/records", content=body, headers=headers, params=parameters, timeout=60)

    def get(self, path: str, **parameters: Any) -> httpx.Response:
        """GET a path."""
        return httpx.get(f"{self.url}{path}", params=parameters, timeout=60)

    def receipts(self, folder: str = "processed") -> dict[str, dict[str, Any]]:
        """All receipts there, by the name of their file."""
        return {
            path.name.removesuffix(".receipt.json"): json.loads(path.read_bytes())
            for path in (self.data / folder).rglob("*.receipt.json")
        }

    def inbox_is_empty(self) -> bool:
        """Whether every dropped file is done."""
        return not any(path.is_file() for path in (self.data / "inbox").rglob("*"))


def oncelake(
    *arguments: str, data: Path, forks: Forks | None = None, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of the command line."""
    command = [*arguments, "--data", str(data)]
    environ = {**os.environ, **{key.upper(): value for key, value in settings.items()}}
    if forks is not None:
        with tempfile.TemporaryFile() as errors:
            process = forks.start(command, environ, _ROOT, errors)
            with process.stdout:
                output = process.stdout.read().decode()
            code = process.wait(_COMMAND_S)
            errors.seek(0)
            return subprocess.CompletedProcess(command, code, output, errors.read().decode())
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=_COMMAND_S,
        env=environ,
        cwd=_ROOT,
    )


def wait_until(holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
