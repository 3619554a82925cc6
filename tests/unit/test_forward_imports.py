"""What costs a start its time is loaded where it is needed: client libraries, and what makes lines again."""

from __future__ import annotations

import subprocess
import sys

CLIENTS = ("redis", "nats", "aio_pika", "confluent_kafka", "obstore", "urllib3")
ENGINES = ("duckdb", "pyarrow", "numpy")


def loaded(names: tuple[str, ...], modules: str) -> list[str]:
    """Which of these are there after an import in a process of its own."""
    program = f"import sys, {modules}\nprint(*[name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_no_command_loads_a_client_that_is_not_configured() -> None:
    """The service starts without them."""
    assert loaded(CLIENTS, "service.cli, service.serve, service.forwarding") == []


def test_the_forwarder_alone_loads_no_engine() -> None:
    """`oncelake forward --once` is for cron: it starts in a fifth of the time, and has a fifth of the memory."""
    assert loaded(ENGINES, "service.cli, service.forwarding") == []
    assert set(loaded(ENGINES, "outbox.remake")) == set(ENGINES), "the names are still right"
