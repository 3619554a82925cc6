"""Client libraries are loaded where they are configured, and nowhere else."""

from __future__ import annotations

import subprocess
import sys

CLIENTS = ("redis", "nats", "aio_pika", "confluent_kafka", "obstore", "urllib3")


def test_no_command_loads_a_client_that_is_not_configured() -> None:
    """The service starts without them."""
    program = (
        "import sys, service.cli, service.serve, service.forwarding\n"
        f"print([name for name in {CLIENTS!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
