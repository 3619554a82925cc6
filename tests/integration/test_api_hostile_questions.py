"""Questions that nobody asks in good faith: an answer that is right or a 400, never a 500."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from api.questions import _digest
from store.engine import Engine
from store.errors import QueryMemoryError, QueryTimeError
from store.filters import Filters
from tests.support.app import Served, served
from tests.support.forms import FORMS, rows_in, rows_of_json
from tests.support.model import FIELDS, Model
from tests.support.snapshots import START_US, record, snapshot_of

PATH = "/records/aggregations"
SQL = "x' OR '1'='1'; DROP TABLE hot; --"
ROWS = [
    record(
        recordId=f"r{number}",
        time=START_US + number,
        destinationId=f"d{number}",
        sourceId=(SQL, "\U0001f600")[number % 2],
    )
    for number in range(3_000)
]
MODEL = Model()
MODEL.take([tuple(row[name] for name in FIELDS) for row in ROWS[:30]])  # type: ignore[misc]

NAMES = "startTime endTime type destinationId sourceId reference unit include asOf limit cursor".split()
VALUES = [
    "",
    SQL,
    "\"; ATTACH '/tmp/x'; --",
    "$destination_ids",
    "\x00",
    "a\x00b",
    "\U0001f600",
    "\uffff",
    "../../etc/passwd",
    "read_csv('/etc/passwd')",
    "null",
    "-1",
    "1e400",
    "\u0663",
    "9223372036854775807",
    "9223372036854775808",
    "0" * 5_000,
    "NaN",
    "infinity",
    "[1, 2]",
    "2024-03-01T12:00:00+99:99",
    "x" * 40_000,
]
UNDECODABLE = ["%FF", "%ED%A0%80", "%C0%80", "%F5%80%80%80", "a%ED%BF%BFb"]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("lake")
    with served(root, snapshot_of(root, ROWS[:30], flushed=20)) as found:
        yield found


@pytest.mark.parametrize("value", VALUES, ids=[repr(value[:12]) for value in VALUES])
def test_no_value_of_any_parameter_does_harm(lake: Served, value: str) -> None:
    """What is no text is refused; a text matches what is equal to it, and nothing else."""
    for name in NAMES:
        answer = lake.get(f"{PATH}?{name}={quote(value)}")
        assert answer.status_code in (200, 400), (name, answer.text)
        if answer.status_code == 400:
            assert answer.json()["code"] == "invalid_parameter"
        elif name in ("destinationId", "sourceId", "reference", "unit"):
            assert answer.json()["groups"] == MODEL.aggregate(**{name: [value]})["groups"]
        two = lake.get(f"{PATH}?{name}={quote(value)}&{name}=d1", headers={"accept": FORMS["csv"]})
        assert two.status_code in (200, 400)
        if two.status_code == 200:
            expected = rows_of_json(MODEL.aggregate(**{name: [value, "d1"]}), "records")
            assert rows_in("csv", two.content, "records") == expected


@pytest.mark.parametrize("value", UNDECODABLE)
def test_what_is_no_utf8_is_refused(lake: Served, value: str) -> None:
    """Lone surrogates too, in a value and in a name."""
    for query in [*(f"{name}={value}" for name in NAMES), f"{value}=1"]:
        answer = lake.get(f"{PATH}?{query}")
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter")


@pytest.mark.parametrize(
    "place",
    [
        [6, "d", 10**18, 5],
        [6, "d", -1, 5],
        [6, "d", 5, 2**70],
        [-1, "d", 5, 5],
        [2**64, "d", 5, 5],
        [6, "d", 1.5, 5],
        [6, None, 5, 5],
        [6, "d", 5],
        {"a": 1},
    ],
    ids=str,
)
def test_a_cursor_that_was_made_up_is_refused(lake: Served, place: Any) -> None:
    """Also one with the digest of its filters, which is no secret."""
    if isinstance(place, list):
        place = [place[0], _digest(Filters()), *place[1:]]
    cursor = base64.urlsafe_b64encode(json.dumps(place).encode()).decode()
    answer = lake.get(PATH, params={"cursor": cursor})
    assert (answer.status_code, answer.json()["parameter"]) == (400, "cursor")


def test_a_made_up_place_is_only_a_place(lake: Served) -> None:
    """Texts of a cursor are bound like all others."""
    for destination in (SQL, "\x00", "\U0001f600", "d29"):
        place = [30, _digest(Filters()), destination, 5, 5]
        cursor = base64.urlsafe_b64encode(json.dumps(place).encode()).decode()
        answer = lake.get(PATH, params={"cursor": cursor})
        expected = [row for row in rows_of_json(MODEL.aggregate(), "records") if row["destinationId"] >= destination]
        assert rows_of_json(answer.json(), "records") == expected


_END = "connection: close\r\n\r\n"


@pytest.mark.parametrize("include", ["records", "totals"])
def test_thousands_of_values_of_one_filter_are_answered(tmp_path_factory: pytest.TempPathFactory, include: str) -> None:
    """As many as fit into a head of 64 KiB, some of them twice, in a hash join."""
    root = tmp_path_factory.mktemp("many")
    with served(root, snapshot_of(root, ROWS, flushed=2_000)) as lake:
        wanted = [f"d{number * 2 % 4_000}" for number in range(3_000)]
        query = "&".join([f"include={include}", *(f"destinationId={name}" for name in wanted)])
        found = lake.raw(f"GET {PATH}?{query} HTTP/1.1\r\nhost: x\r\naccept: text/csv\r\n{_END}".encode())
        lines = [line for line in found.splitlines() if b"SEK" in line]
        at = 4 if include == "records" else 0
        known = {row["destinationId"] for row in ROWS}
        assert [line.split(b",")[at].decode() for line in lines] == sorted(known & set(wanted))


@pytest.mark.parametrize(("pairs", "status"), [(10_000, 200), (10_001, 400)])
def test_there_may_be_so_many_pairs(lake: Served, pairs: int, status: int) -> None:
    """The shortest that there are; a few more characters do not fit into the head of a request."""
    assert lake.get(f"{PATH}?{'&'.join(['unit='] * pairs)}").status_code == status


@pytest.mark.parametrize(
    ("error", "code"), [(QueryTimeError("too long"), "query_timeout"), (QueryMemoryError("too much"), "query_memory")]
)
def test_a_query_beyond_its_limits_is_a_problem_with_a_code(lake: Served, error: Exception, code: str) -> None:
    """503, in every format, before the first byte."""

    def fail() -> None:
        raise error

    lake.reader.on_snapshot = fail
    for accept in ("application/json", *FORMS.values()):
        answer = lake.get(PATH, headers={"accept": accept})
        assert (answer.status_code, answer.json()["code"]) == (503, code)
    lake.reader.on_snapshot = lambda: None


def test_a_query_that_takes_too_long_is_a_problem(tmp_path_factory: pytest.TempPathFactory) -> None:
    """By the clock of the engine; the next one has its own time."""
    root = tmp_path_factory.mktemp("late")
    with served(root, snapshot_of(root, ROWS, flushed=2_000)) as lake:
        patient, lake.reader.engine = lake.reader.engine, Engine(root, root / "tmp", memory="64MB", time_s=1e-6)
        for accept in ("application/json", *FORMS.values()):
            answer = lake.get(PATH, headers={"accept": accept})
            assert (answer.status_code, answer.json()["code"]) == (503, "query_timeout")
            assert "store.query_timeout_s" in answer.json()["detail"]
        lake.reader.engine.close()
        lake.reader.engine = patient
        assert len(lake.get(PATH).json()["groups"]) == len(ROWS)
