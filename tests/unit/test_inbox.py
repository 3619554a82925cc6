"""Finished files in groups: one that cannot have its receipt waits by itself."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.lake import Lake

FILES = 40


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """A lake with dropped files of one record each."""
    lake = Lake(tmp_path / "data")
    for number in range(FILES):
        record = {
            "recordId": f"rec-{number}", "time": "2024-03-01T12:00:00Z", "sourceId": "s", "destinationId": "d",
            "type": "positive", "value": number, "unit": "SEK", "reference": "r",
        }  # fmt: skip
        lake.drop(f"f{number}.ndjson", json.dumps(record).encode())
    return lake


def receipts(lake: Lake) -> set[str]:
    """The files that have a receipt that counts their record."""
    found = {path: json.loads(path.read_bytes()) for path in (lake.root / "processed").glob("*.receipt.json")}
    assert all(receipt["accepted"] == 1 for receipt in found.values())
    return {path.name.removesuffix(".receipt.json") for path in found}


def test_a_group_of_files_has_its_receipts_together(lake: Lake) -> None:
    """All are moved, told and forgotten after one scan."""
    assert lake.inbox.run_once() == FILES
    assert receipts(lake) == {f"f{number}.ndjson" for number in range(FILES)}
    assert [path.name for path in (lake.root / "inbox").iterdir()] == []
    assert not [path for path in (lake.root / "processed").iterdir() if path.name.startswith(".")]
    lake.restart()
    assert lake.committer.input_states() == [] and lake.inbox.run_once() == 0
    lake.close()


def test_a_receipt_that_cannot_be_written_keeps_nobody_waiting(lake: Lake) -> None:
    """The file is moved, told as a problem, and has its receipt once that can be written, also after a restart."""
    obstacle = lake.root / "processed" / ".f7.ndjson.receipt.json.tmp"
    obstacle.mkdir()
    assert lake.inbox.run_once() == FILES - 1
    assert receipts(lake) == {f"f{number}.ndjson" for number in range(FILES) if number != 7}
    assert lake.inbox.problem is not None and "f7.ndjson" in lake.inbox.problem
    assert (lake.root / "processed/f7.ndjson").exists()
    lake.restart()
    assert [state.path for state in lake.committer.input_states() if state.done] != []
    obstacle.rmdir()
    lake.inbox.run_once()
    assert len(receipts(lake)) == FILES and lake.inbox.problem is None
    assert lake.store.seq == FILES
    lake.close()


def test_a_file_that_cannot_be_opened_is_told_and_keeps_nobody_waiting(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a problem of the inbox and in the log; it is taken once it can be read."""
    real = os.open

    def refused(path: Any, *rest: Any, **more: Any) -> int:
        if str(path).endswith("f7.ndjson"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "open", refused)
    assert lake.inbox.run_once() == FILES - 1
    assert lake.inbox.problem is not None and "f7.ndjson: [Errno 13] Permission denied" in lake.inbox.problem
    assert "f7.ndjson waits" in caplog.text and lake.inbox.waiting == 1
    monkeypatch.undo()
    assert lake.inbox.run_once() == 1 and lake.inbox.problem is None
    lake.close()


def test_a_file_that_is_taken_back_is_no_problem(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also between the look at its kind and its opening."""
    real = Path.is_file

    def taken_back(path: Path) -> bool:
        found = real(path)
        if path.name == "f7.ndjson":
            path.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(Path, "is_file", taken_back)
    assert lake.inbox.run_once() == FILES - 1 and lake.inbox.problem is None
    lake.close()
