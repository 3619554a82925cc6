"""The description of the API: whole, with examples that hold, every code, and who may ask."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from api.access import ROUTES
from api.components import SCHEMAS
from api.schema import DOCUMENT

ROOT = Path(__file__).parents[2]
OPERATIONS = [
    (method, path, operation) for path, methods in DOCUMENT["paths"].items() for method, operation in methods.items()
]
IDS = [f"{method} {path}" for method, path, _ in OPERATIONS]


def valid(schema: dict[str, Any], value: Any) -> None:
    jsonschema_rs.Draft202012Validator({**schema, "components": {"schemas": SCHEMAS}}).validate(value)


def examples(node: Any) -> list[tuple[dict[str, Any], Any]]:
    """(schema, example) of everything in the document that has both."""
    found: list[tuple[dict[str, Any], Any]] = []
    if isinstance(node, dict):
        schema = node.get("schema", node if "type" in node else None)
        if isinstance(schema, dict):
            found += [(schema, node["example"])] if "example" in node else []
            found += [(schema, example["value"]) for example in node.get("examples", {}).values()]
        for child in node.values():
            found += examples(child)
    elif isinstance(node, list):
        for child in node:
            found += examples(child)
    return found


def test_every_example_is_valid_by_its_schema() -> None:
    """What a reader copies is taken."""
    found = examples(DOCUMENT)
    assert len(found) > 50
    for schema, value in found:
        valid(schema, value)


def test_every_reference_leads_somewhere() -> None:
    """And every schema is referred to."""
    names = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(DOCUMENT)))
    assert names == set(SCHEMAS)


def test_every_code_that_the_service_answers_with_is_described() -> None:
    """In the answers of some operation, or as the code of a record or file."""
    described = set(re.findall(r"`([a-z_]+)`", json.dumps(DOCUMENT)))
    raised = set()
    for path in [*ROOT.glob("api/*.py"), ROOT / "service" / "connections.py"]:
        raised |= set(re.findall(r'\b(?:problem|ProblemError|_refuse)\(\s*\d+,\s*"(\w+)"', path.read_text()))
    for path in [*ROOT.glob("ingest/*.py"), ROOT / "store" / "errors.py"]:
        raised |= set(re.findall(r'\bcode\s*=\s*"(\w+)"', path.read_text()))
    assert {"too_many_records", "unauthorized", "queue_full"} <= raised
    assert raised - {"disconnected", "invalid_input", "not_a_regular_file"} <= described


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=IDS)
def test_an_operation_says_who_may_ask_and_what_can_go_wrong(method: str, path: str, operation: dict[str, Any]) -> None:
    """401 and 403 where a token is asked for, and problems as problems."""
    allowed = ROUTES[(method.upper(), path)]
    is_open = "anyone" in allowed
    assert operation["security"] == ([] if is_open else [{"token": []}])
    assert ("401" in operation["responses"]) == ("403" in operation["responses"]) == (not is_open)
    assert all(role in operation["description"] for role in (["everybody"] if is_open else [*allowed, "admin"]))
    for status, answer in operation["responses"].items():
        if int(status) >= 400 and (path, status) != ("/health", "503"):
            assert "application/problem+json" in answer["content"], status


def test_the_page_needs_no_other_host() -> None:
    """No script, style or image from anywhere."""
    from api.schema import _page

    page = _page()
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:)?//""", page)
    assert "<script" not in page and "@import" not in page
