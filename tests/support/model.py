"""The service as a plain Python model: a dict, a list and Decimals, one record at a time.

It is what the contract says, without any of the ways in which the service does it. `canonical` records are tuples in
the order of the canonical fields, with time in microseconds and value as Decimal.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from typing import Any

FIELDS = ("recordId", "time", "sourceId", "destinationId", "type", "value", "unit", "reference")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Canonical = tuple[str, int, str, str, str, Decimal, str, str]


@dataclass
class Stored:
    """A record that was accepted, and the notification and alert that it must have."""

    seq: int
    record: Canonical
    previous: dict[str, Any]
    threshold: str | None


@dataclass
class Model:
    """Everything that was accepted, in order."""

    threshold: Decimal = Decimal(10000)
    stored: list[Stored] = field(default_factory=list)
    by_id: dict[str, Stored] = field(default_factory=dict)

    def take(self, records: list[Canonical | None], *, atomic: bool = False, dry_run: bool = False) -> dict[str, Any]:
        """The answer to a batch; None stands for a record that breaks a rule."""
        trial = Model(self.threshold, list(self.stored), dict(self.by_id)) if atomic or dry_run else self
        answer = trial._take(records)
        if atomic and not dry_run and not (answer["conflict"] or answer["rejected"]):
            self.stored, self.by_id = trial.stored, trial.by_id
        elif trial is not self:
            answer["firstSeq"] = answer["lastSeq"] = None
            committed = len(self.stored)
            for problem in answer["problems"]:
                if problem.get("seq", 0) > committed:
                    problem["seq"] = None  # it would be that of a record of the same batch, which is not stored
        return answer

    def _take(self, records: list[Canonical | None]) -> dict[str, Any]:
        counts = {"accepted": 0, "duplicate": 0, "conflict": 0, "rejected": 0}
        seqs: list[int] = []
        problems: list[dict[str, Any]] = []
        for index, record in enumerate(records):
            if record is None:
                counts["rejected"] += 1
                problems.append({"index": index, "status": "rejected"})
                continue
            known = self.by_id.get(record[0])
            if known is None:
                seqs.append(self._accept(record))
                counts["accepted"] += 1
            elif known.record == record:
                counts["duplicate"] += 1
            else:
                counts["conflict"] += 1
                differing = [name for name, a, b in zip(FIELDS, record, known.record, strict=True) if a != b]
                problems.append(
                    {"index": index, "recordId": record[0], "status": "conflict", "seq": known.seq, "fields": differing}
                )
        return {
            "received": len(records),
            **counts,
            "firstSeq": seqs[0] if seqs else None,
            "lastSeq": seqs[-1] if seqs else None,
            "problems": problems,
        }

    def _accept(self, record: Canonical) -> int:
        seq = len(self.stored) + 1
        threshold = plain(self.threshold) if record[5] > self.threshold else None
        stored = Stored(seq, record, self._previous(record), threshold)
        self.stored.append(stored)
        self.by_id[record[0]] = stored
        return seq

    def _previous(self, record: Canonical) -> dict[str, Any]:
        before = [s for s in self.stored if (s.record[3], s.record[7]) == (record[3], record[7])]
        if not before:
            return {"count": 0, "firstTime": None, "lastTime": None, "lastSeq": None, "totals": []}
        times = [s.record[1] for s in before]
        return {
            "count": len(before),
            "firstTime": canonical_time(min(times)),
            "lastTime": canonical_time(max(times)),
            "lastSeq": before[-1].seq,
            "totals": totals([s.record for s in before]),
        }

    def notification(self, stored: Stored, processed_at: str) -> str:
        """The line of a record, but for its newline."""
        return compact(
            {
                "seq": stored.seq,
                "processedAt": processed_at,
                "record": canonical(stored.record),
                "previous": stored.previous,
            }
        )

    def alert(self, stored: Stored, processed_at: str) -> str:
        """The alert line of a record above the threshold."""
        return compact(
            {
                "seq": stored.seq,
                "processedAt": processed_at,
                "record": canonical(stored.record),
                "threshold": stored.threshold,
            }
        )

    def aggregate(self, as_of: int | None = None, **filters: Any) -> dict[str, Any]:
        """The answer to `GET /records/aggregations` with these filters (times in microseconds, lists of values)."""
        as_of = len(self.stored) if as_of is None else as_of
        matching = [s for s in self.stored if s.seq <= as_of and _matches(s.record, filters)]
        groups = []
        for destination in sorted({s.record[3] for s in matching}):
            members = sorted((s for s in matching if s.record[3] == destination), key=lambda s: (s.record[1], s.seq))
            sums = totals([s.record for s in members])
            groups.append(
                {
                    "destinationId": destination,
                    "count": len(members),
                    "total": sums[0]["net"] if len(sums) == 1 else None,
                    "totals": sums,
                    "records": [{"seq": s.seq, **canonical(s.record)} for s in members],
                }
            )
        return {
            "asOf": as_of,
            "groups": groups,
            "totals": totals([s.record for s in matching]),
            "nextCursor": None,
        }


def _matches(record: Canonical, filters: dict[str, Any]) -> bool:
    _, time, source, destination, type_, _, unit, reference = record
    checks = (
        ("start", lambda limit: time >= limit),
        ("end", lambda limit: time < limit),
        ("type", lambda wanted: type_ == wanted),
        ("destinationId", lambda wanted: destination in wanted),
        ("sourceId", lambda wanted: source in wanted),
        ("reference", lambda wanted: reference in wanted),
        ("unit", lambda wanted: unit in wanted),
    )
    return all(check(filters[name]) for name, check in checks if filters.get(name) is not None)


def totals(records: list[Canonical]) -> list[dict[str, Any]]:
    """Sums by unit, exact."""
    result = []
    with localcontext(prec=60):
        for unit in sorted({record[6] for record in records}):
            of_unit = [record for record in records if record[6] == unit]
            positive = sum((r[5] for r in of_unit if r[4] == "positive"), Decimal(0))
            negative = sum((r[5] for r in of_unit if r[4] == "negative"), Decimal(0))
            result.append(
                {
                    "unit": unit,
                    "count": len(of_unit),
                    "positive": plain(positive),
                    "negative": plain(negative),
                    "net": plain(positive - negative),
                }
            )
    return result


def canonical(record: Canonical) -> dict[str, str]:
    """The canonical JSON form."""
    values: list[Any] = list(record)
    values[1] = canonical_time(record[1])
    values[5] = plain(record[5])
    return dict(zip(FIELDS, values, strict=True))


def canonical_time(us: int) -> str:
    """A time in the canonical form."""
    return (EPOCH + timedelta(microseconds=us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def plain(value: Decimal) -> str:
    """A decimal in plain notation without trailing zeros."""
    text = format(value, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def compact(value: Any) -> str:
    """JSON without spaces, not escaped beyond what JSON asks for."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
