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
from api.page import page_of
from api.problem_examples import PROBLEM_EXAMPLES
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


def test_every_problem_has_an_example_in_the_words_of_the_service() -> None:
    """Of each code that some operation answers with, and of no other: a detail, and the members that it has."""
    problems = [
        (int(status), name, example["value"])
        for _, _, operation in OPERATIONS
        for status, answer in operation["responses"].items()
        for content in [answer["content"].get("application/problem+json", {})]
        for name, example in content.get("examples", {}).items()
    ]
    assert {name for _, name, _ in problems} == set(PROBLEM_EXAMPLES)
    for status, name, value in problems:
        assert (value["status"], value["code"]) == (status, name)
        assert len(value["detail"]) > 20 and value["title"] not in ("Unprocessable Entity", "Request Entity Too Large")


def test_the_table_of_problems_has_every_code_with_its_status() -> None:
    """And those that no operation has: another method, a client that went away."""
    text = (ROOT / "docs" / "formats.md").read_text().partition("\n## Problems\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \| (\d+) \|", text, re.MULTILINE)
    told = {(code, status) for codes, status in rows for code in re.findall(r"\w+", codes)}
    described = {
        (name, status)
        for _, _, operation in OPERATIONS
        for status, answer in operation["responses"].items()
        for name in answer["content"].get("application/problem+json", {}).get("examples", {})
    }
    assert told == described | {("method_not_allowed", "405"), ("disconnected", "400")}


def test_every_body_and_answer_that_is_text_has_an_example() -> None:
    """So that nobody has to guess; Parquet and Arrow are no text."""
    for method, path, operation in OPERATIONS:
        answers = [(status, answer["content"]) for status, answer in operation["responses"].items()]
        for where, contents in [("body", operation.get("requestBody", {}).get("content", {})), *answers]:
            for media_type, content in contents.items():
                is_shown = "example" in content or bool(content.get("examples"))
                assert is_shown == ("vnd.apache" not in media_type), (method, path, where, media_type)


def test_the_page_shows_every_parameter_code_and_schema() -> None:
    """And each link in it leads somewhere in it, or to the document."""
    page = page_of(DOCUMENT)
    anchors = set(re.findall(r'id="([^"]+)"', page))
    targets = set(re.findall(r'href="([^"]+)"', page))
    assert {target.removeprefix("#") for target in targets - {"/schema/openapi.json"}} <= anchors
    assert {f"schema-{name}" for name in SCHEMAS} <= anchors
    for _, _, operation in OPERATIONS:
        assert all(f"<code>{each['name']}</code>" in page for each in operation.get("parameters", ()))
    assert all(f"<summary>{code}</summary>" in page for code in PROBLEM_EXAMPLES)


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
    page = page_of(DOCUMENT)
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:)?//""", page)
    assert "<script" not in page and "@import" not in page
