"""JSON records that are written alike, one on a line, as columns of text: found by their quotes, without parsing each.

A source writes its records with the same keys in the same order and the same spaces between them. Once one line is
known, another with as many quotes is surely like it if the bytes around every value are the same: then each value is
what stands between. That takes half of the time of a JSON reader, and there is nothing that it is lenient about. What
the values may be is checked afterwards, as for every format (`ingest.validate`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from store.schema import CANONICAL_FIELDS

__all__ = ["Layout", "layout_of", "values_of"]

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_WORD = 8
_MEMBER = re.compile(rb'([ \t]*)"(\w+)"([ \t]*:[ \t]*)(?:"[^"]*"|([0-9.+-]+))')
_COMMA = re.compile(rb"[ \t]*,")
_END = re.compile(rb"[ \t]*\}")


@dataclass(frozen=True)
class _Member:
    """`fixed` are the bytes between the value before it, or the beginning, and its own value. `before` of them stand
    before the opening quote of its key, which is number `quote` of its line.
    """

    name: str
    fixed: bytes
    before: int
    quote: int


@dataclass(frozen=True)
class Layout:
    """How a line is written: its members in their order, the bytes after the last value, and how many quotes."""

    members: tuple[_Member, ...]
    tail: bytes
    quotes: int


def layout_of(line: bytes) -> Layout | None:
    """The layout of a line that is an object of the eight fields; None if it is anything else.

    Only `value` may be a number. The line has no backslashes and no control characters.
    """
    members: list[_Member] = []
    quotes = 0
    at = 1
    before = line[:1]
    while found := _MEMBER.match(line, at):
        space, name, colon, number = found.groups()
        if number and name != b"value":
            return None
        closing = b"" if number else b'"'
        before += space
        members.append(_Member(name.decode(), before + b'"' + name + b'"' + colon + closing, len(before), quotes))
        quotes += 2 if number else 4
        at = found.end()
        comma = _COMMA.match(line, at)
        if comma is None:
            break
        before = closing + comma[0]
        at = comma.end()
    end = _END.fullmatch(line, at)
    if line[:1] != b"{" or end is None or sorted(member.name for member in members) != sorted(CANONICAL_FIELDS):
        return None
    return Layout(tuple(members), closing + end[0], quotes)


def values_of(
    layout: Layout, text: bytes, starts: Ints, ends: Ints, quotes: Ints
) -> tuple[dict[str, pa.StringArray], Mask]:
    """The values by name of the lines that are like the layout, and which these are.

    `quotes` are the positions of all quotes of the text, as many as the layout has for each line. The text is UTF-8.
    """
    places = np.ascontiguousarray(quotes.reshape(len(starts), layout.quotes).T)
    alike = places[-1] < ends
    alike[:-1] &= places[0, 1:] >= ends[:-1]  # just so many in each line: one with more may make up for one with fewer
    begins, stops = [], []
    for member in layout.members:
        stops.append(places[member.quote] - member.before)
        begins.append(stops[-1] + len(member.fixed))
        _compare(text, stops[-1], member.fixed, alike)
    alike &= stops[0] == starts
    stops.append(ends - len(layout.tail))
    _compare(text, stops[-1], layout.tail, alike)
    bounds = list(zip(begins, stops[1:], strict=True))
    for begin, stop in bounds:
        alike &= begin <= stop
    if not alike.all():
        bounds = [(begin[alike], stop[alike]) for begin, stop in bounds]
    return {
        member.name: _slices(text, begin, stop)
        for member, (begin, stop) in zip(layout.members, bounds, strict=True)
    }, alike  # fmt: skip


def _compare(text: bytes, at: Ints, fixed: bytes, alike: Mask) -> None:
    """Lines that do not have these bytes at their place are not alike."""
    size = _WORD if len(fixed) >= _WORD else 1
    # the word that begins at every byte, without copying any
    words = np.ndarray(shape=(len(text) - size + 1,), dtype=f"<u{size}", buffer=text, strides=(1,))
    for offset in [*range(0, len(fixed) - size, size), len(fixed) - size]:
        wanted = int.from_bytes(fixed[offset : offset + size], "little")
        alike &= words[np.minimum(at + offset, len(words) - 1)] == wanted  # beyond the end, or before: not alike


def _slices(text: bytes, begin: Ints, stop: Ints) -> pa.StringArray:
    """`text[begin[i]:stop[i]]` as row i; the slices follow one another."""
    bounds = np.empty(2 * len(begin) + 1, np.int32)
    bounds[:-1:2], bounds[1::2] = begin, stop
    bounds[-1] = len(text)
    every = pa.StringArray.from_buffers(2 * len(begin), pa.py_buffer(bounds), pa.py_buffer(text))
    return every.take(pa.array(np.arange(0, len(every), 2)))
