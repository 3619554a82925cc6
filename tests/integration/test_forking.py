"""The forked starts of the crash tests are the service: what `python -m service.cli` does, without its imports."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.forking import Forks
from tests.support.service import Service, oncelake


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    """One process for all tests."""
    with Forks() as found:
        yield found


def test_a_forked_service_is_a_process_of_its_own_session_with_its_own_settings(tmp_path: Path, forks: Forks) -> None:
    """It answers, its log is its standard error, and it ends with 0 on SIGTERM."""
    with Service(tmp_path / "data", forks=forks, oncelake_log__format="json") as service:
        assert os.getsid(service.pid) == service.pid
        assert service.get("/health").json()["status"] == "ok"
        assert service.log().startswith('{"')
        assert service.stop() == 0


def test_a_kill_ends_a_forked_service_and_its_store_is_free(tmp_path: Path, forks: Forks) -> None:
    """The next start, a real one, takes the store; a signal is the exit code as of other processes."""
    service = Service(tmp_path / "data", forks=forks).start()
    os.kill(service.pid, signal.SIGKILL)
    assert service.wait(60) == -signal.SIGKILL
    service.start(anew=True)
    assert service.stop() == 0


@pytest.mark.parametrize("arguments", [["aggregate"], ["verify", "--nothing"], ["replay", "--to", "7"]])
def test_a_forked_command_says_and_ends_as_one_that_was_started(
    tmp_path: Path, forks: Forks, arguments: list[str]
) -> None:
    """Output, errors and exit code are the same."""
    with Service(tmp_path / "data", forks=forks) as service:
        service.stop()
    forked, started = (oncelake(*arguments, data=tmp_path / "data", forks=each) for each in (forks, None))
    assert (forked.returncode, forked.stdout) == (started.returncode, started.stdout)
    assert started.stderr == forked.stderr
