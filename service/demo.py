"""`make demo`: sample records through the real service, in a throwaway data directory, and what comes out."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

__all__ = ["main"]

SAMPLES = Path(__file__).parents[1] / "data" / "samples"
RECORD = {
    "recordId": "demo-001",
    "time": "2024-03-01T12:00:00Z",
    "sourceId": "source-a",
    "destinationId": "dest-123",
    "type": "positive",
    "value": "25000.50",
    "unit": "SEK",
    "reference": "invoice-9",
}


def main() -> int:
    """Run it; 0 when the service did everything and stopped cleanly."""
    with tempfile.TemporaryDirectory(prefix="oncelake-demo-") as directory:
        data = Path(directory) / "data"
        command = [sys.executable, "-m", "service.cli", "serve", "--data", str(data), "--port", "0"]
        service = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert service.stdout is not None
            line = service.stdout.readline()
            _say("The service", line.strip())
            url = re.search(r"http://\S+", line)
            if url is None:
                return 1
            _show(data, url[0].rstrip("/"))
        finally:
            service.send_signal(signal.SIGTERM)
            code = service.wait(60)
        _say("Stopped", f"exit code {code}")
        return code


def _show(data: Path, url: str) -> None:
    dropped = [path for path in sorted(SAMPLES.iterdir()) if path.is_file() and path.suffix != ".md"]
    for path in dropped:
        shutil.copy(path, data / "inbox" / f".{path.name}")
        (data / "inbox" / f".{path.name}").rename(data / "inbox" / path.name)
    _say("Dropped into the inbox", ", ".join(path.name for path in dropped))
    _wait_for_receipts(data, len(dropped))
    for path in sorted(data.glob("*/*.receipt.json")):
        receipt = json.loads(path.read_bytes())
        counts = {name: receipt[name] for name in ("received", "accepted", "duplicate", "conflict", "rejected")}
        _say(f"{path.parent.name}/{path.name}", json.dumps(counts))
    for attempt in ("POST /records", "the same again"):
        body = json.dumps(RECORD).encode()
        request = urllib.request.Request(f"{url}/records", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request) as answer:  # nosec B310
            _say(attempt, f"{answer.status} {answer.read().decode()}")
    with urllib.request.urlopen(f"{url}/records/aggregations?include=totals") as answer:  # nosec B310
        _say("GET /records/aggregations?include=totals", json.dumps(json.load(answer), indent=2, ensure_ascii=False))
    for feed in ("notifications", "alerts"):
        lines = [
            line
            for segment in sorted((data / "outbox" / feed).glob("*.jsonl"))
            for line in segment.read_text().splitlines()
        ]
        _say(f"outbox/{feed}: {len(lines)} lines, the last of them", "\n".join(lines[-2:]))


def _wait_for_receipts(data: Path, files: int) -> None:
    end = time.monotonic() + 60
    while len(list(data.glob("*/*.receipt.json"))) < files:
        if time.monotonic() > end:
            raise TimeoutError(f"{files} files were dropped, and not all have a receipt after a minute")
        time.sleep(0.05)


def _say(what: str, text: str) -> None:
    print(f"\n== {what}\n{text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
