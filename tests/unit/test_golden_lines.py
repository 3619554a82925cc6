"""The exact bytes of what programs read from files: notifications, alerts, dead letters and receipts."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from ingest.committer import Committer
from ingest.decode import Limits
from ingest.inbox import Inbox, InboxSettings
from ingest.intake import Intake
from ingest.record import Rules as RecordRules
from store.journal import Rules
from store.store import Store, StoreSettings
from tests.support.golden import assert_golden

RECORD = (
    '{"recordId":"%s","time":"2024-03-01T14:00:00.5+02:00","sourceId":"source-a","destinationId":"dest-123",'
    '"type":"%s","value":%s,"unit":"%s","reference":"invoice \\"9\\" \\\\ ü"}'
)
LINES = "\n".join(
    [
        RECORD % ("rec-001", "positive", "125.50", "SEK"),
        RECORD % ("rec-002", "negative", "5", "SEK"),
        RECORD % ("rec-003", "positive", "0.000000001", "kg"),
        RECORD % ("rec-001", "positive", '"125.5"', "SEK"),  # the same
        RECORD % ("rec-001", "positive", "126", "EUR"),  # a conflict
        RECORD % ("rec-004", "positive", "1.0000000001", ""),  # two rules broken
        "{broken",
        "",
        RECORD % ("rec-005", "negative", "99999999999999999999.999999999", "SEK"),  # an alert
        RECORD % ("rec-006", "positive", "1e1", "kg"),
    ]
)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake that has taken one file of every outcome and one that cannot be decoded, by a clock of its own."""
    root = tmp_path_factory.mktemp("golden") / "data"
    clock = itertools.count(1_709_294_400_000_000, 1_000)
    store = Store(StoreSettings(root, fsync=False))
    committer = Committer(store, Rules("10000", {"kg": "9.5"}, {}), now_us=lambda: 1_709_294_500_000_000)
    committer.start()
    inbox = Inbox(
        store.disk, committer, RecordRules(), Limits(), InboxSettings(root, settle_s=0.0), now_us=lambda: next(clock)
    )
    (root / "inbox" / "a.ndjson").write_text(LINES + "\n")
    inbox.run_once()
    (root / "inbox" / "b.json").write_text('[{"recordId":')
    inbox.run_once()
    schema = b"recordId,time\nx,y\n"
    intake = Intake(committer, RecordRules(), Limits())
    refused = intake.submit(schema, "text/csv", None, atomic=False, dry_run=False, request_id="request-1")
    assert refused.exception(10) is not None
    committer.stop()
    store.close()
    return root


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("outbox/notifications/00000000000000000001.jsonl", "notifications.jsonl"),
        ("outbox/alerts/00000000000000000004.jsonl", "alerts.jsonl"),
        ("processed/a.ndjson.receipt.json", "processed.receipt.json"),
        ("failed/b.json.receipt.json", "failed.receipt.json"),
        ("outbox/notifications/committed.json", "committed.json"),
    ],
)
def test_the_bytes_that_programs_read_stay_as_they_are(lake: Path, path: str, name: str) -> None:
    """A changed byte is a changed contract."""
    assert_golden(f"lines/{name}", (lake / path).read_bytes())


def test_the_bytes_of_dead_letters_stay_as_they_are(lake: Path) -> None:
    """A conflict, two rejected records and a refused schema, with where they came from."""
    (path,) = (lake / "rejected").glob("*.jsonl")
    assert_golden("lines/rejected.jsonl", path.read_bytes())
