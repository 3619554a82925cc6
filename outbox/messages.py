"""The notification and alert lines, a commit at a time from columns, or one at a time from plain values.

The format stands in the contract, section 5; golden files in the tests hold its bytes. `store.messages_sql` makes the
same lines from stored records in SQL, which is how `verify` and `replay` check this module.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from store import kernels
from store.arrays import I64
from store.canonical import json_strings, render_decimals, render_integers, render_times
from store.plain import string_text, time_text, units_text
from store.summaries import Summary
from store.sums import Limbs, from_limbs

__all__ = [
    "NO_PREVIOUS",
    "Previous",
    "SingleUnit",
    "alert_line",
    "alert_lines",
    "notification_line",
    "notification_lines",
    "previous_of",
    "previous_of_one_unit",
]

NO_PREVIOUS = '{"count":0,"firstTime":null,"lastTime":null,"lastSeq":null,"totals":[]}'
"""The summary of a record that is the first of its destinationId and reference."""

_US_UTC = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class SingleUnit:
    """Summaries whose records all have one unit, a row each. Times are microseconds, sums four limbs (`store.sums`)."""

    count: I64
    first: I64
    last: I64
    last_seq: I64
    unit: pa.Array
    positive: Limbs
    negative: Limbs


@dataclass(frozen=True)
class Previous:
    """The `previous` object of each row as JSON: `texts[place[i]]`, because many are the same."""

    texts: pa.Array
    place: I64

    def rows(self) -> pa.Array:
        """Row by row."""
        return self.texts.take(pa.array(self.place))


def previous_of_one_unit(summary: SingleUnit) -> pa.Array:
    """The `previous` objects of summaries with one unit, as JSON texts."""
    totals = (
        from_limbs(summary.positive),
        from_limbs(summary.negative),
        from_limbs(summary.positive - summary.negative),
    )
    numbers = (summary.count, summary.first, summary.last, summary.last_seq)
    found = kernels.render_previous(*numbers, summary.unit, totals)
    if found is not None:
        return found
    count, first, last, last_seq = map(pa.array, numbers)
    positive, negative, net = map(render_decimals, totals)
    return _joined(
        '{"count":', count.cast(pa.string()),
        ',"firstTime":"', render_times(first.cast(_US_UTC)),
        '","lastTime":"', render_times(last.cast(_US_UTC)),
        '","lastSeq":', last_seq.cast(pa.string()),
        ',"totals":[{"unit":"', json_strings(summary.unit),
        '","count":', count.cast(pa.string()),
        ',"positive":"', positive, '","negative":"', negative, '","net":"', net, '"}]}',
    )  # fmt: skip


def notification_lines(first_seq: int, processed_at: str, records: pa.Array, previous: Previous) -> memoryview:
    """The bytes of the notification lines of records whose seqs follow one another. `records` are JSON texts."""
    middle = f',"processedAt":"{processed_at}","record":'
    found = kernels.render_notifications(first_seq, middle.encode(), records, previous.texts, previous.place)
    if found is not None:
        return found
    seqs = render_integers(pa.array(np.arange(first_seq, first_seq + len(records))))
    return _contents(_joined('{"seq":', seqs, middle, records, ',"previous":', previous.rows(), "}\n"))


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


def previous_of(summary: Summary) -> str:
    """The `previous` object of one summary, whatever its units."""
    totals = summary.totals
    if not totals:
        return NO_PREVIOUS
    objects = ",".join(
        f'{{"unit":{string_text(unit)},"count":{count},"positive":"{units_text(positive)}",'
        f'"negative":"{units_text(negative)}","net":"{units_text(positive - negative)}"}}'
        for unit, (count, positive, negative) in (sorted(totals.items()) if len(totals) > 1 else totals.items())
    )
    count = sum(total[0] for total in totals.values())
    return (
        f'{{"count":{count},"firstTime":"{time_text(summary.first)}","lastTime":"{time_text(summary.last)}",'
        f'"lastSeq":{summary.last_seq},"totals":[{objects}]}}'
    )


def notification_line(seq: int, processed_at: str, record: str, previous: str) -> str:
    """One notification line, as `notification_lines` has it."""
    return f'{{"seq":{seq},"processedAt":"{processed_at}","record":{record},"previous":{previous}}}\n'


def alert_line(seq: int, processed_at: str, record: str, threshold: int) -> str:
    """One alert line, as `alert_lines` has it; the threshold in units of 10^-9."""
    return f'{{"seq":{seq},"processedAt":"{processed_at}","record":{record},"threshold":"{units_text(threshold)}"}}\n'
