"""One record, checked exactly: the reference that every faster path must agree with.

| code | the record broke this rule |
| --- | --- |
| `malformed` | it cannot be read at all: no JSON object, no UTF-8, a CSV line that does not fit its header |
| `missing` | a field is not there, or null |
| `unknown_field` | a field that no record has (the message names the nearest one) |
| `type` | a JSON value of another type than the field's |
| `empty` | a string without characters |
| `too_long` | a string of more characters (code points) than the field may have |
| `control_character` | a character of category Cc (U+0000–U+001F, U+007F–U+009F) |
| `surrogate` | half of a surrogate pair, which is no character |
| `type_unknown` | `type` is neither `positive` nor `negative` |
| `time_format` | `time` is not RFC 3339 with an offset, or no date of the calendar |
| `time_range` | `time` is outside the years 1970–2200 in UTC |
| `value_format` | `value` is a string outside the grammar of a JSON number |
| `value_scale` | `value` has more than nine digits after the point |
| `value_range` | `value` is 10^20 or more, or below −10^20 |
| `value_negative` | `value` is negative (and `ingest.negative_values` is "reject") |
| `source_not_allowed` | `sourceId` is none that this token, or this folder of the inbox, may bring |

All errors of a record are told, not only the first. A value never goes through binary floating point: its text is
taken apart here, so that an exponent of a billion costs nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, NamedTuple, NoReturn, cast

import msgspec
import numpy as np

from ingest.batch import Record
from store.outcomes import FieldError
from store.schema import CANONICAL_FIELDS, FIELD_LIMIT, SCALE, TIME_MAX_US, TIME_MIN_US, UNIT_LIMIT
from store.times import parse_time

__all__ = [
    "MAX_RECORD_BYTES",
    "Micros",
    "Number",
    "Rejected",
    "Rules",
    "check_fields",
    "exact_json",
    "is_deeper",
    "malformed",
    "parse_record",
]

MAX_RECORD_BYTES = 4 << 20
"""One record as sent; a longer line or element is malformed (a valid one needs a few KiB)."""

_MAX_UNKNOWN = 20
_NAME_CHARS = 64
_LONGEST_NEAR = 20
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_TYPES = ("positive", "negative")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_NUMBER = re.compile(r"(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?)([0-9]+))?")
_PLAIN = re.compile(r"(?:0|[1-9][0-9]{0,19})(?:\.[0-9]{1,9})?")
_HUGE_EXPONENT_DIGITS = 18


@dataclass(frozen=True)
class Rules:
    """What the configuration may loosen, and the `sources` that a batch may bring (None is all).

    `max_depth` is how deep the JSON of a record may be nested; a record that can be taken is 1 deep.
    """

    unknown_fields: Literal["reject", "ignore"] = "reject"
    negative_values: Literal["reject", "accept"] = "reject"
    sources: frozenset[str] | None = None
    max_depth: int = 64


class Number(str):
    """The text of a number token, to tell it from a string."""

    __slots__ = ()


class Micros(int):
    """A time that came as a timestamp: microseconds since the epoch in UTC."""

    __slots__ = ()


class Rejected(NamedTuple):
    """A record that broke rules. `broken`: the bytes are not even JSON. `record_id` is None where not itself valid."""

    record_id: str | None
    errors: tuple[FieldError, ...]
    broken: bool = False
    broken_code: str | None = None
    """Of a body that fails as a whole because of this record, where that is not `undecodable`."""
    source_id: str | None = None
    """None where it is itself not valid."""


def malformed(message: str, *, broken: bool = False, field: str | None = None) -> Rejected:
    """A record that cannot be read."""
    return Rejected(None, (FieldError(field, "malformed", message),), broken)


def parse_record(data: bytes, rules: Rules) -> Record | Rejected:
    """One JSON object as a record, or everything that is wrong with it."""
    found = _plain_record(data) if len(data) <= MAX_RECORD_BYTES else None
    if found is None or (rules.sources is not None and found.source_id not in rules.sources):
        return parse_carefully(data, rules)
    return found


class _Wire(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    recordId: str
    time: str
    sourceId: str
    destinationId: str
    type: str
    value: msgspec.Raw
    unit: str
    reference: str


_decode = msgspec.json.Decoder(_Wire).decode


def _plain_record(data: bytes) -> Record | None:
    """A record that is surely valid under any rules; None where that takes a closer look."""
    try:
        wire = _decode(data)
        token = str(wire.value, "ascii")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if token[0] == '"':
        token = token[1:-1]
    record_id, source_id, destination_id = wire.recordId, wire.sourceId, wire.destinationId
    unit, reference = wire.unit, wire.reference
    if (
        0 < len(record_id) <= FIELD_LIMIT
        and 0 < len(source_id) <= FIELD_LIMIT
        and 0 < len(destination_id) <= FIELD_LIMIT
        and 0 < len(reference) <= FIELD_LIMIT
        and 0 < len(unit) <= UNIT_LIMIT
        # Printable excludes Cc and surrogates, and some more (such as U+00A0), which then take the longer way.
        and (record_id + source_id + destination_id + unit + reference).isprintable()
        and wire.type in _TYPES
        and _PLAIN.fullmatch(token)
    ):
        time_us = parse_time(wire.time)
        if isinstance(time_us, int):
            kind = cast("Literal['positive', 'negative']", wire.type)
            return Record(record_id, time_us, source_id, destination_id, kind, Decimal(token), unit, reference)
    return None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


exact_json = json.JSONDecoder(parse_int=Number, parse_float=Number, parse_constant=_refuse_constant)
"""Numbers as they are written, and nothing that is not JSON."""


def parse_carefully(data: bytes, rules: Rules) -> Record | Rejected:
    """The whole check, without the shortcut of `parse_record`."""
    if len(data) > MAX_RECORD_BYTES:
        return malformed(f"A record of {len(data)} bytes; at most {MAX_RECORD_BYTES} can be.")
    if is_deeper(data, rules.max_depth):
        return _too_deep(rules)
    try:
        content = exact_json.decode(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        return malformed(f"Not UTF-8: {error.reason} at byte {error.start}.", broken=True)
    except json.JSONDecodeError as error:
        return malformed(f"Not JSON: {error.msg} at character {error.pos}.", broken=True)
    except ValueError as error:
        return malformed(f"Not JSON: {error}.", broken=True)
    except RecursionError:
        return _too_deep(rules)
    if not isinstance(content, dict):
        return malformed(f"A record is a JSON object, and this is {_kind(content)}.")
    return check_fields(content, rules)


def is_deeper(data: bytes, most: int) -> bool:
    """Whether arrays and objects are nested more than `most` deep in a JSON text; of broken JSON, about."""
    if data.count(b"{") + data.count(b"[") <= most:
        return False
    text = np.frombuffer(_STRING.sub(b"", data), np.uint8)
    steps = np.zeros(len(text), np.int8)
    steps[(text == ord("[")) | (text == ord("{"))] = 1
    steps[(text == ord("]")) | (text == ord("}"))] = -1
    return bool(len(text) and np.cumsum(steps, dtype=np.int32).max() > most)


def _too_deep(rules: Rules) -> Rejected:
    message = f"Nested more than {rules.max_depth} deep (ingest.max_json_depth); a record holds no arrays or objects."
    return malformed(message, broken=True)._replace(broken_code="too_deep")


def check_fields(fields: Mapping[str, object], rules: Rules) -> Record | Rejected:
    """Fields as a record, or all their errors: in the order of the canonical fields, unknown ones last.

    Text is `str`, the token of a number `Number`, a timestamp `Micros`; None stands for null.
    """
    errors: list[FieldError] = []
    values: dict[str, object] = {}
    for name in CANONICAL_FIELDS:
        content = fields.get(name)
        if content is None:
            said = "is null" if name in fields else "is missing"
            errors.append(FieldError(name, "missing", f"{name} {said}; every field is required."))
            continue
        problems: list[tuple[str, str]] = []
        values[name] = _CHECKS[name](content, rules, problems)
        errors.extend(FieldError(name, code, f"{name} {message}") for code, message in problems)
    if rules.unknown_fields == "reject" and len(fields) > sum(name in fields for name in CANONICAL_FIELDS):
        errors.extend(_unknown([name for name in fields if name not in CANONICAL_FIELDS]))
    if not errors:
        return Record(*values.values())  # type: ignore[arg-type]
    bad = {error.field for error in errors if error.code != "source_not_allowed"}
    record_id, source_id = (
        None if name in bad else cast("str | None", values.get(name)) for name in ("recordId", "sourceId")
    )
    return Rejected(record_id, tuple(errors), source_id=source_id)


def _unknown(names: list[str]) -> list[FieldError]:
    errors = []
    for name in names[:_MAX_UNKNOWN]:
        # Names are the source's own text: bounded, and without what no JSON answer could carry.
        shown = name[:_NAME_CHARS].encode("utf-8", "backslashreplace").decode()
        near = _nearest(shown)
        hint = f"; did you mean {near}?" if near else f"; the fields are {', '.join(CANONICAL_FIELDS)}."
        errors.append(FieldError(shown, "unknown_field", f"{shown} is not a field of a record{hint}"))
    if len(names) > _MAX_UNKNOWN:
        more = len(names) - _MAX_UNKNOWN
        errors.append(FieldError(None, "unknown_field", f"{more} more fields are not fields of a record."))
    return errors


def _without(text: str) -> set[str]:
    """A text, and the same without any one of its characters."""
    return {text, *(text[:at] + text[at + 1 :] for at in range(len(text)))}


_NEAR = {
    shorter: name
    for name in reversed(CANONICAL_FIELDS)
    for short in _without(name.lower())
    for shorter in _without(short)
}
"""The fields by what is left of them without one or two characters."""


def _nearest(name: str) -> str | None:
    """The field that differs least, if little. difflib would take 3 ms for 20 names, and a body can hold millions."""
    if len(name) > _LONGEST_NEAR:
        return None
    plain = re.sub(r"[\W_]", "", name.lower())
    return next((_NEAR[short] for short in (plain, *sorted(_without(plain))) if short in _NEAR), None)


_Problems = list[tuple[str, str]]


def _text(limit: int) -> Callable[[object, Rules, _Problems], str]:
    def check(content: object, rules: Rules, problems: _Problems) -> str:
        if not isinstance(content, str) or isinstance(content, Number):
            problems.append(("type", f"is {_kind(content)}; it must be a string."))
            return ""
        if not content:
            problems.append(("empty", f"is empty; it takes 1 to {limit} characters."))
        elif len(content) > limit:
            problems.append(("too_long", f"has {len(content)} characters; at most {limit} are allowed."))
        if found := _CONTROL.search(content):
            problems.append(("control_character", f"holds the control character U+{ord(found[0]):04X}."))
        if found := _SURROGATE.search(content):
            problems.append(("surrogate", f"holds the lone surrogate U+{ord(found[0]):04X}, which is no character."))
        return content

    return check


_check_source_text = _text(FIELD_LIMIT)


def _check_source(content: object, rules: Rules, problems: _Problems) -> str:
    source = _check_source_text(content, rules, problems)
    if not problems and rules.sources is not None and source not in rules.sources:
        problems.append(("source_not_allowed", f"is {_shown(source)}, which is not allowed to come this way."))
    return source


def _check_type(content: object, rules: Rules, problems: _Problems) -> str:
    if not isinstance(content, str) or isinstance(content, Number):
        problems.append(("type", f"is {_kind(content)}; it must be a string."))
        return ""
    if content not in _TYPES:
        problems.append(("type_unknown", f'is {_shown(content)}; it must be "positive" or "negative".'))
    return content


def _check_time(content: object, rules: Rules, problems: _Problems) -> int:
    if isinstance(content, Micros):
        found: int | str = int(content) if TIME_MIN_US <= content < TIME_MAX_US else "time_range"
    elif isinstance(content, str) and not isinstance(content, Number):
        found = parse_time(content)
    else:
        problems.append(("type", f"is {_kind(content)}; it must be a string."))
        return 0
    if isinstance(found, int):
        return found
    if found == "time_range":
        problems.append((found, "is outside the years 1970 to 2200 (in UTC)."))
    else:
        problems.append(
            (found, f"is {_shown(str(content))}; it must be RFC 3339 with an offset, such as 2024-03-01T12:00:00Z.")
        )
    return 0


def _check_value(content: object, rules: Rules, problems: _Problems) -> Decimal:
    zero = Decimal(0)
    if not isinstance(content, str):
        problems.append(("type", f"is {_kind(content)}; it must be a number, or a string that holds one."))
        return zero
    found = _NUMBER.fullmatch(content)
    if found is None:
        problems.append(("value_format", f"is {_shown(content)}, which is not a number in the grammar of JSON."))
        return zero
    minus, whole, fraction, exponent_sign, exponent = found.groups("")
    padded = (whole + fraction).lstrip("0")
    digits = padded.rstrip("0")
    if not digits:
        return zero
    exponent = exponent.lstrip("0")
    if minus and rules.negative_values == "reject":
        problems.append(("value_negative", f"is {_shown(content)}; it must not be negative, as type carries the sign."))
    if len(exponent) > _HUGE_EXPONENT_DIGITS:
        # No text is long enough for its zeros to make up for such an exponent.
        scale, magnitude = (SCALE + 1, 0) if exponent_sign == "-" else (0, 10**_HUGE_EXPONENT_DIGITS)
    else:
        shift = int(exponent or "0") * (-1 if exponent_sign == "-" else 1)
        scale = len(fraction) - (len(padded) - len(digits)) - shift
        magnitude = len(digits) - scale
    if magnitude > 20 and not (minus and magnitude == 21 and digits == "1"):
        problems.append(("value_range", f"is {_shown(content)}; it must be below 10^20."))
    if scale > SCALE:
        problems.append(("value_scale", f"is {_shown(content)}; at most {SCALE} digits may stand after the point."))
    if problems:
        return zero
    if scale <= 0:
        return Decimal(minus + digits + "0" * -scale)
    digits = digits.rjust(scale + 1, "0")
    return Decimal(f"{minus}{digits[:-scale]}.{digits[-scale:]}")


_CHECKS: dict[str, Callable[[object, Rules, _Problems], object]] = {
    "recordId": _text(FIELD_LIMIT),
    "time": _check_time,
    "sourceId": _check_source,
    "destinationId": _text(FIELD_LIMIT),
    "type": _check_type,
    "value": _check_value,
    "unit": _text(UNIT_LIMIT),
    "reference": _text(FIELD_LIMIT),
}


def _kind(content: object) -> str:
    if isinstance(content, bool):
        return "a boolean"
    if isinstance(content, Number | int):
        return "a number"
    if isinstance(content, str):
        return "a string"
    if content is None:
        return "null"
    return "an array" if isinstance(content, list) else "an object"


def _shown(text: str) -> str:
    """The text as a message may carry it: bounded, ASCII."""
    return ascii(text) if len(text) <= 40 else ascii(text[:40]) + "…"
