"""The notification and alert lines, a commit at a time, from columns.

The format stands in the contract, section 5; golden files in the tests hold its bytes. `store.messages_sql` makes the
same lines from stored records in SQL, which is how `verify` and `replay` check this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from store.canonical import json_strings, render_decimals, render_times

__all__ = [
    "NO_PREVIOUS",
    "SingleUnit",
    "alert_lines",
    "notification_lines",
    "previous_of_many_units",
    "previous_of_one_unit",
]

NO_PREVIOUS = '{"count":0,"firstTime":null,"lastTime":null,"lastSeq":null,"totals":[]}'
"""The summary of a record that is the first of its destinationId and reference."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DIGITS = 60
"""Of the decimal context: more than any sum has."""

_US_UTC = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class SingleUnit:
    """Summaries whose records all have one unit, a row each. Times are int64 microseconds."""

    count: pa.Array
    first: pa.Array
    last: pa.Array
    last_seq: pa.Array
    unit: pa.Array
    positive: pa.Array
    negative: pa.Array
    net: pa.Array


def previous_of_one_unit(summary: SingleUnit) -> pa.Array:
    """The `previous` objects of summaries with one unit, as JSON texts."""
    count = summary.count.cast(pa.string())
    return _joined(
        '{"count":', count,
        ',"firstTime":"', render_times(summary.first.cast(_US_UTC)),
        '","lastTime":"', render_times(summary.last.cast(_US_UTC)),
        '","lastSeq":', summary.last_seq.cast(pa.string()),
        ',"totals":[{"unit":"', json_strings(summary.unit),
        '","count":', count,
        ',"positive":"', render_decimals(summary.positive),
        '","negative":"', render_decimals(summary.negative),
        '","net":"', render_decimals(summary.net), '"}]}',
    )  # fmt: skip


def notification_lines(seqs: pa.Array, processed_at: str, records: pa.Array, previous: pa.Array) -> memoryview:
    """The bytes of the notification lines. `records` and `previous` are JSON texts, a row each."""
    lines = _joined(
        '{"seq":', seqs.cast(pa.string()),
        f',"processedAt":"{processed_at}","record":', records,
        ',"previous":', previous, "}\n",
    )  # fmt: skip
    return _contents(lines)


def alert_lines(seqs: pa.Array, processed_at: str, records: pa.Array, thresholds: pa.Array) -> memoryview:
    """The bytes of the alert lines of these records."""
    lines = _joined(
        '{"seq":', seqs.cast(pa.string()),
        f',"processedAt":"{processed_at}","record":', records,
        ',"threshold":"', render_decimals(thresholds), '"}\n',
    )  # fmt: skip
    return _contents(lines)


def _joined(*pieces: str | pa.Array) -> pa.Array:
    """Texts and columns joined row by row; pyarrow does it without the interpreter lock."""
    return pc.binary_join_element_wise(*pieces, "")


def _contents(lines: pa.Array) -> memoryview:
    """The joined bytes of a string array: its data buffer, which nothing needs to copy."""
    if not len(lines):
        return memoryview(b"")
    offsets = memoryview(lines.buffers()[1]).cast("i")
    begin, end = offsets[lines.offset], offsets[lines.offset + len(lines)]
    return memoryview(lines.buffers()[2])[begin:end]


def previous_of_many_units(
    totals: Mapping[str, Sequence[Decimal | int]], first_us: int, last_us: int, last_seq: int
) -> str:
    """The `previous` object of a summary with several units: unit to (count, positive, negative), all exact."""
    with localcontext(prec=_DIGITS):
        objects = ",".join(
            f'{{"unit":{_encode(unit)},"count":{count},"positive":"{_plain(positive)}",'
            f'"negative":"{_plain(negative)}","net":"{_plain(positive - negative)}"}}'
            for unit, (count, positive, negative) in sorted(totals.items())
        )
    count = sum(int(total[0]) for total in totals.values())
    return (
        f'{{"count":{count},"firstTime":"{_time(first_us)}","lastTime":"{_time(last_us)}",'
        f'"lastSeq":{last_seq},"totals":[{objects}]}}'
    )


def _encode(text: str) -> str:
    return msgspec.json.encode(text).decode()


def _plain(value: Decimal | int) -> str:
    text = format(Decimal(value), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _time(us: int) -> str:
    return (_EPOCH + timedelta(microseconds=us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
