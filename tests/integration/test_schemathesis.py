"""The API as its description says, asked by schemathesis with all checks: no 5xx, no answer that is not described.

`make schemathesis` runs it longer (ONCELAKE_TEST_SCHEMATHESIS_S seconds).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from api.tokens import hash_of, new_token
from tests.support.service import Service

ROOT = Path(__file__).parents[2]
SECONDS = int(os.environ.get("ONCELAKE_TEST_SCHEMATHESIS_S", "0"))


CONFIG = ROOT / "tests" / "support" / "schemathesis.toml"


def test_every_check_holds_for_every_route(tmp_path: Path) -> None:
    """Valid and invalid requests, with and without a token, one after the other and in sequences."""
    secret = new_token()
    tokens = f'[{{ name = "tester", role = "admin", hash = "{hash_of(secret)}" }}]'
    bound = ["--max-time", str(SECONDS)] if SECONDS else ["--max-examples", "20"]
    with Service(tmp_path / "data", oncelake_tokens=tokens, oncelake_store__fsync="false") as service:
        run = ["run", f"{service.url}/schema/openapi.json", "--checks", "all", *bound]
        found = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), *run],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env={**os.environ, "ONCELAKE_TEST_TOKEN": secret},
            timeout=300 + 2 * SECONDS,
        )
        assert found.returncode == 0, found.stdout[-8_000:] + found.stderr[-2_000:]
        assert service.get("/health").json()["status"] == "ok"
        assert "Traceback" not in service.log()
        assert secret not in service.log()
