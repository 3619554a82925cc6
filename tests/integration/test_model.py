"""Random batches in every format, flushes, restarts and questions in any order, against a plain Python model."""

from __future__ import annotations

import json
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from store.filters import Filters
from tests.support.batches import COMPRESSIONS, ENDINGS, MEDIA_TYPES, encoded
from tests.support.lake import Lake
from tests.support.model import Canonical, Model, canonical

DAY_US = 86_400_000_000
BASE_US = 1_709_294_400_000_000

values = st.one_of(
    st.sampled_from(["0", "1.5", "9999.999999999", "10000", "10000.000000001", "99999999999999999999.999999999"]),
    st.decimals(min_value=0, max_value=20_000, places=9).map(lambda value: format(value, "f")),
)
texts = st.sampled_from(["a", "ü", 'q"\\', "日本", "x y", "z" * 256])
records = st.builds(
    lambda number, time, source, destination, type_, value, unit, reference: (
        f"id-{number}",
        BASE_US + time,
        source,
        destination,
        type_,
        Decimal(value),
        unit,
        reference,
    ),
    st.integers(0, 30),
    st.one_of(st.integers(0, 3).map(lambda day: day * DAY_US), st.integers(-DAY_US, DAY_US)),
    st.sampled_from(["s1", "s2"]),
    texts,
    st.sampled_from(["positive", "negative"]),
    values,
    st.sampled_from(["SEK", "kg", "€"]),
    st.sampled_from(["r1", "r2"]),
)
BREAKS = {"value": "1.0000000001", "time": "2024-03-01", "type": "neutral", "unit": "", "recordId": "a\x7fb"}
broken = st.sampled_from(sorted(BREAKS))
batches = st.lists(st.one_of(records, records, records, records, broken), max_size=50)


def written(items: list[Canonical | str]) -> list[dict[str, Any]]:
    """Records as texts; a broken one has one field that breaks a rule."""
    rows = []
    for number, item in enumerate(items):
        if isinstance(item, str):
            row: dict[str, Any] = dict(
                canonical((f"bad-{number}", BASE_US, "s1", "a", "positive", Decimal(1), "SEK", "r1"))
            )
            row[item] = BREAKS[item]
        else:
            row = dict(canonical(item))
        rows.append(row)
    return rows


class LakeAgainstModel(RuleBasedStateMachine):
    """Every rule does the same to the lake and to the model and compares what they say."""

    @initialize()
    def create(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self.lake = Lake(Path(self._directory.name) / "data")
        self.model = Model()
        self.files = 0
        self.letters = 0

    def teardown(self) -> None:
        if hasattr(self, "lake"):
            self.lake.close()
            self._directory.cleanup()

    def _compare(self, answer: dict[str, Any], expected: dict[str, Any]) -> None:
        for problem in answer["problems"]:
            problem.pop("errors", None)
            if problem["status"] == "rejected":
                problem.pop("recordId")
        assert {key: answer[key] for key in expected} == expected

    @rule(
        items=batches,
        fmt=st.sampled_from(sorted(MEDIA_TYPES)),
        compression=st.sampled_from(COMPRESSIONS),
        mode=st.sampled_from(["plain", "plain", "plain", "atomic", "dry_run"]),
    )
    def post_batch(self, items: list[Any], fmt: str, compression: str | None, mode: str) -> None:
        atomic, dry_run = mode == "atomic", mode == "dry_run"
        reply = self.lake.post(
            encoded(written(items), fmt, compression), fmt, compression, atomic=atomic, dry_run=dry_run
        )
        expected = self.model.take([None if isinstance(i, str) else i for i in items], atomic=atomic, dry_run=dry_run)
        self._compare(self.lake.answer(reply), expected)
        refused = atomic and bool(expected["conflict"] or expected["rejected"])
        assert reply.atomic_refused == refused
        if not (dry_run or refused):
            self.letters += expected["conflict"] + expected["rejected"]

    @rule(record=records)
    def post_single(self, record: Canonical) -> None:
        body = json.dumps(canonical(record)).encode()
        before = self.model.by_id.get(record[0])
        expected = self.model.take([record])
        reply = self.lake.post(body)
        assert reply.single
        self._compare(self.lake.answer(reply), expected)
        if expected["duplicate"]:
            assert before is not None and reply.duplicate_seq == before.seq
        self.letters += expected["conflict"]

    @rule(items=batches, fmt=st.sampled_from(sorted(MEDIA_TYPES)), compression=st.sampled_from(COMPRESSIONS))
    def drop_file(self, items: list[Any], fmt: str, compression: str | None) -> None:
        self.files += 1
        name = f"file-{self.files}.{fmt}{ENDINGS[compression]}"
        self.lake.drop(name, encoded(written(items), fmt, compression))
        while self.lake.inbox.run_once():
            pass
        expected = self.model.take([None if isinstance(item, str) else item for item in items])
        self._compare(self.lake.receipt(name), expected)
        self.letters += expected["conflict"] + expected["rejected"]

    @rule()
    def flush(self) -> None:
        self.lake.store.flush_once()
        while self.lake.store.tiers.merge_once():
            pass
        rows = self._glob()
        assert [row[0] for row in rows] == [stored.seq for stored in self.model.stored]
        for row, stored in zip(rows, self.model.stored, strict=True):
            assert row[1:9] == stored.record

    def _glob(self) -> list[tuple[Any, ...]]:
        pattern = f"{self.lake.root}/records/**/*.parquet"
        if not list(self.lake.root.glob("records/**/*.parquet")):
            return []
        with duckdb.connect() as connection:
            return connection.execute(
                """
                SELECT seq, recordId, epoch_us(time), sourceId, destinationId, type, value, unit, reference
                FROM read_parquet(?, hive_partitioning = true)
                WHERE date = (time AT TIME ZONE 'UTC')::DATE
                ORDER BY seq
                """,
                [pattern],
            ).fetchall()

    @rule(
        start=st.one_of(st.none(), st.integers(-DAY_US, 3 * DAY_US)),
        end=st.one_of(st.none(), st.integers(-DAY_US, 3 * DAY_US)),
        type_=st.sampled_from([None, "positive", "negative"]),
        destinations=st.lists(texts, max_size=2, unique=True),
        units=st.lists(st.sampled_from(["SEK", "kg", "€"]), max_size=2, unique=True),
        back=st.one_of(st.none(), st.integers(0, 60)),
    )
    def aggregate(
        self,
        start: int | None,
        end: int | None,
        type_: str | None,
        destinations: list[str],
        units: list[str],
        back: int | None,
    ) -> None:
        as_of = None if back is None else max(0, len(self.model.stored) - back)
        begin, until = (None if us is None else BASE_US + us for us in (start, end))
        found = self.lake.aggregate(Filters(begin, until, type_, tuple(destinations), units=tuple(units), as_of=as_of))
        expected = self.model.aggregate(
            as_of, start=begin, end=until, type=type_, destinationId=destinations or None, unit=units or None
        )
        assert found == expected

    @rule()
    def restart(self) -> None:
        self.lake.restart()

    @rule(record_id=st.integers(0, 30).map(lambda number: f"id-{number}"))
    def look_up(self, record_id: str) -> None:
        found = self.lake.store.find(record_id)
        stored = self.model.by_id.get(record_id)
        assert (found is None) == (stored is None)
        if found is not None and stored is not None:
            assert found.column("seq")[0].as_py() == stored.seq
            assert found.column("value")[0].as_py() == stored.record[5]

    @invariant()
    def every_line_is_the_model_s(self) -> None:
        if not hasattr(self, "lake"):
            return
        lines = self.lake.lines("notifications")
        assert len(lines) == len(self.model.stored)
        for line, stored in zip(lines, self.model.stored, strict=True):
            assert line == self.model.notification(stored, json.loads(line)["processedAt"])
        alerts = self.lake.lines("alerts")
        above = [stored for stored in self.model.stored if stored.threshold]
        assert len(alerts) == len(above)
        for line, stored in zip(alerts, above, strict=True):
            assert line == self.model.alert(stored, json.loads(line)["processedAt"])
        letters = sorted((self.lake.root / "rejected").glob("*.jsonl"))
        assert sum(path.read_bytes().count(b"\n") for path in letters) == self.letters


LakeAgainstModel.TestCase.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestModel = LakeAgainstModel.TestCase
