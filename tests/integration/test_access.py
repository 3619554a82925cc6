"""Who may do what: every route for every role and for no token; sources of tokens and of folders."""

from __future__ import annotations

import json
import re
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from litestar.testing import TestClient

from api.access import ROUTES
from api.app import create_app
from api.ports import ApiSettings
from api.tokens import Token, Tokens, hash_of, new_token
from service.config import Config, Ingest, StoreConfig
from service.runtime import Lake, Reader
from store.engine import Engine
from tests.support.batches import COMPRESSIONS, MEDIA_TYPES, encoded
from tests.support.service import Service, oncelake, wait_until

SECRETS = {"ingest": new_token(), "bound": new_token(), "read": new_token(), "admin": new_token()}
TOKENS = Tokens(
    [
        Token("sender", "ingest", hash_of(SECRETS["ingest"])),
        Token("one-source", "ingest", hash_of(SECRETS["bound"]), ("source-a", "source-ä")),
        Token("reader", "read", hash_of(SECRETS["read"])),
        Token("boss", "admin", hash_of(SECRETS["admin"])),
    ]
)
ROLES = ("ingest", "read", "admin")
BEARERS = (None, "unknown", *ROLES)

# What the README and the operations guide promise, written down a second time.
EXPECTED = {
    "POST /records": "ingest admin",
    "GET /records": "read admin",
    "GET /records/aggregations": "read admin",
    "GET /records/{}": "read admin",
    "GET /feeds/notifications": "read admin",
    "GET /feeds/alerts": "read admin",
    "GET /rejected": "read admin",
    "POST /rejected/{}/resubmit": "admin",
    "GET /metrics": "read admin",
    "GET /health": "None unknown ingest read admin",
    "GET /schema": "None unknown ingest read admin",
    "GET /schema/openapi.json": "None unknown ingest read admin",
}


def record(number: int = 1, source: str = "source-a") -> dict[str, str]:
    return {
        "recordId": f"rec-{number}",
        "time": "2024-03-01T12:00:00Z",
        "sourceId": source,
        "destinationId": "dest-1",
        "type": "positive",
        "value": "1.5",
        "unit": "SEK",
        "reference": "r",
    }


class Guarded:
    """A lake whose application knows the tokens above."""

    def __init__(self, lake: Lake, client: TestClient[Any]) -> None:
        self.lake = lake
        self.client = client

    def ask(self, method: str, path: str, bearer: str | None, **options: Any) -> httpx.Response:
        headers = options.pop("headers", {})
        if bearer is not None:
            headers = {**headers, "authorization": f"Bearer {SECRETS.get(bearer, 'olk_' + 43 * 'x')}"}
        return self.client.request(method, path, headers=headers, **options)

    def post(self, content: Any, bearer: str = "bound", media_type: str = "application/json") -> httpx.Response:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.ask("POST", "/records", bearer, content=data, headers={"content-type": media_type})

    def letters(self) -> list[dict[str, Any]]:
        paths = sorted((self.lake.store.root / "rejected").glob("*.jsonl"))
        return [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    root = tmp_path_factory.mktemp("access") / "data"
    lake = Lake(Config(store=StoreConfig(data_dir=str(root), fsync=False, flush_interval_s=3_600.0)))
    temp = root / "internal" / "tmp"
    lake.store.disk.make_directory(temp)
    engine = Engine(root, temp, memory="64MB")
    lake.start()
    try:
        with TestClient(create_app(lake.intake, Reader(lake, engine), ApiSettings(), TOKENS)) as client:
            yield Guarded(lake, client)
    finally:
        lake.stop()
        engine.close()


def routes(guarded: Guarded) -> list[tuple[str, str]]:
    """Method and path of every route of the application."""
    found = []
    for route in guarded.client.app.routes:
        found += [(method, route.path_format) for method in route.methods - {"OPTIONS"}]
    return sorted(found)


def shape(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)


def test_every_route_answers_each_role_and_nobody_as_documented(guarded: Guarded) -> None:
    """401 without or with an unknown token, 403 for another role, and something else where it is allowed."""
    walked = routes(guarded)
    assert ("POST", "/records") in walked and ("GET", "/health") in walked
    for method, path in walked:
        may = EXPECTED[f"{method} {shape(path)}"].split()
        for bearer in BEARERS:
            found = guarded.ask(method, shape(path).replace("{}", "1"), bearer)
            status = found.status_code
            if str(bearer) in may:
                assert status not in (401, 403), (method, path, bearer, found.text)
            else:
                expected = (401, "unauthorized") if bearer in (None, "unknown") else (403, "forbidden")
                assert (status, found.json()["code"]) == expected, (method, path, bearer)
                assert found.headers["content-type"] == "application/problem+json"
            assert ("www-authenticate" in found.headers) == (status == 401)


def test_the_table_is_the_documented_one() -> None:
    """In the code, in the operations guide and in this file."""
    table = {
        f"{method} {shape(path)}": set(who.split())
        for (method, path) in ROUTES
        for who in [EXPECTED[f"{method} {shape(path)}"]]
    }
    assert len(table) == len(EXPECTED) == len(ROUTES)
    for (method, path), allowed in ROUTES.items():
        expected = table[f"{method} {shape(path)}"]
        assert ("anyone" in allowed) == ("None" in expected)
        assert "anyone" in allowed or allowed | {"admin"} == expected
    guide = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    rows = dict(re.findall(r"^\| `((?:GET|POST) [^`]+)` \| (.+) \|$", guide, re.MULTILINE))
    assert {shape(route): set(re.findall(r"\w+", who)) for route, who in rows.items()} == {
        route: {"everybody"} if "None" in who else set(who.split()) for route, who in EXPECTED.items()
    }


def test_a_route_that_nobody_has_listed_is_for_admin_alone(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one is closed until somebody has decided."""
    monkeypatch.delitem(ROUTES, ("GET", "/records/aggregations"))
    app = create_app(guarded.lake.intake, Reader(guarded.lake, None), ApiSettings(), TOKENS)  # type: ignore[arg-type]
    with TestClient(app) as client:
        found = {
            role: client.get(
                "/records/aggregations?x=1", headers={"authorization": f"bearer {SECRETS[role]}"}
            ).status_code
            for role in ROLES
        }
    assert found == {"ingest": 403, "read": 403, "admin": 400}


@pytest.mark.parametrize(
    "value",
    [
        "", "Bearer", "Bearer ", "Basic {}", "{}", "Bearer {}x", "Bearer olk_\xff", "Bearer " + 999 * "x",
        'Bearer "{}"', "Bearer,{}", "Bearer {} {}", "bearer\t{}",
    ],
)  # fmt: skip
def test_what_is_no_bearer_token_is_401(guarded: Guarded, value: str) -> None:
    """Whatever stands in the header."""
    header = value.replace("{}", SECRETS["admin"]).encode("latin-1")
    found = guarded.client.get("/records?recordId=x", headers=[(b"authorization", header)])
    assert (found.status_code, found.headers["www-authenticate"]) == (401, 'Bearer error="invalid_token"')


def test_two_authorization_headers_are_none(guarded: Guarded) -> None:
    """Which of them holds would depend on who reads them."""
    both = [(b"authorization", f"Bearer {SECRETS[role]}".encode()) for role in ("admin", "read")]
    assert guarded.client.get("/records?recordId=x", headers=both).status_code == 401


def test_the_scheme_is_read_in_any_case(guarded: Guarded) -> None:
    """RFC 9110, section 11.1."""
    found = guarded.client.get("/records?recordId=x", headers={"authorization": f"bEARER  {SECRETS['read']}"})
    assert found.status_code == 404


def test_without_a_token_health_tells_only_how_it_is(guarded: Guarded) -> None:
    """No seqs, no reasons; with any token, everything."""
    found = guarded.ask("GET", "/health", None).json()
    assert found["status"] == "ok"
    assert all(component == {"status": "ok"} for component in found["components"].values())
    assert "seq" in guarded.ask("GET", "/health", "ingest").json()["components"]["store"]


def test_the_body_of_a_refused_request_is_not_read(guarded: Guarded) -> None:
    """The answer is there before the body is."""

    def endless() -> Iterator[bytes]:
        raise AssertionError("the body was asked for")
        yield b""

    messages: list[dict[str, Any]] = []

    async def receive() -> Any:
        next(endless())

    async def send(message: Any) -> None:
        messages.append(message)

    scope: dict[str, Any] = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/records", "raw_path": b"/records", "query_string": b"", "root_path": "", "state": {},
        "headers": [(b"content-type", b"application/json"), (b"content-length", b"1000000")],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000), "extensions": {},
    }  # fmt: skip
    with guarded.client.portal() as portal:
        portal.call(guarded.client.app, scope, receive, send)
    assert messages[0]["status"] == 401


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("fmt", MEDIA_TYPES)
def test_records_of_other_sources_are_rejected_in_every_format(
    guarded: Guarded, fmt: str, compression: str | None
) -> None:
    """The rest of the batch is taken; the ids of the rejected ones are not consumed."""
    tag = f"{fmt}-{compression}"
    allowed = ("source-a", "source-b", "source-ä", "source-A", "source-a ")
    rows = [
        {**record(number, allowed[number % 5]), "recordId": f"{tag}-{number}", "value": "1", "type": "negative"}
        for number in range(200)
    ]
    headers = {"content-type": MEDIA_TYPES[fmt], **({"content-encoding": compression} if compression else {})}
    data = encoded(rows, fmt, compression)
    found = guarded.ask("POST", "/records", "bound", content=data, headers=headers).json()
    assert (found["accepted"], found["rejected"]) == (80, 120)
    assert {problem["errors"][0]["code"] for problem in found["problems"]} == {"source_not_allowed"}
    assert {problem["errors"][0]["field"] for problem in found["problems"]} == {"sourceId"}
    assert [problem["index"] for problem in found["problems"]] == [n for n in range(200) if n % 5 in (1, 3, 4)]
    again = guarded.ask("POST", "/records", "ingest", content=data, headers=headers).json()
    assert (again["accepted"], again["duplicate"]) == (120, 80)


def test_one_record_of_another_source_is_422_with_a_dead_letter(guarded: Guarded) -> None:
    """It breaks a rule as any other rejected record does."""
    found = guarded.post(record(900, "source-b"))
    assert (found.status_code, found.json()["code"]) == (422, "invalid_record")
    (error,) = found.json()["errors"]
    assert (error["field"], error["code"]) == ("sourceId", "source_not_allowed")
    assert guarded.letters()[-1]["recordId"] == "rec-900"
    assert guarded.post(record(900, "source-a")).status_code == 201
    other = {**record(901, "source-b"), "value": "-1"}
    codes = {error["code"] for error in guarded.post(other).json()["errors"]}
    assert codes == {"source_not_allowed", "value_negative"}


def test_an_atomic_batch_with_another_source_is_refused(guarded: Guarded) -> None:
    """Nothing of it is stored."""
    rows = json.dumps([record(950), record(951, "source-b")]).encode()
    headers = {"content-type": "application/json"}
    found = guarded.ask("POST", "/records?atomic=true", "bound", content=rows, headers=headers)
    assert (found.status_code, found.json()["code"], found.json()["rejected"]) == (422, "atomic_refused", 1)
    assert guarded.ask("GET", "/records/rec-950", "read").status_code == 404


def test_files_below_a_bound_folder_bring_only_its_sources(tmp_path: Path) -> None:
    """The innermost folder that is bound holds; other folders bring all."""
    bound = {"a": ("source-a",), "a/deep": ("source-b",)}
    config = Config(
        store=StoreConfig(data_dir=str(tmp_path), fsync=False),
        ingest=Ingest(inbox_sources=bound, rescan_s=0.05),
    )
    lake = Lake(config)
    folders = ("", "a", "a/x", "a/deep/y", "ab")
    for number, folder in enumerate(folders):
        rows = [
            {**record(2 * number + at, source), "recordId": f"{number}-{source}"}
            for at, source in enumerate(("source-a", "source-b"))
        ]
        (tmp_path / "inbox" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "inbox" / folder / "f.ndjson").write_bytes(encoded(rows, "ndjson"))
    lake.start()
    try:
        receipts = {folder: tmp_path / "processed" / folder / "f.ndjson.receipt.json" for folder in folders}
        wait_until(lambda: all(path.exists() for path in receipts.values()))
    finally:
        lake.stop()
    found = {folder: json.loads(path.read_bytes()) for folder, path in receipts.items()}
    assert {folder: receipt["accepted"] for folder, receipt in found.items()} == {
        "": 2, "a": 1, "a/x": 1, "a/deep/y": 1, "ab": 2
    }  # fmt: skip
    rejected = {folder: found[folder]["problems"][0]["recordId"] for folder in ("a", "a/x", "a/deep/y")}
    assert rejected == {"a": "1-source-b", "a/x": "2-source-b", "a/deep/y": "3-source-a"}


def test_a_token_is_printed_once_with_a_table_that_works(tmp_path: Path) -> None:
    """Made, pasted and used against the real service; neither the log nor check-config holds it."""
    made = oncelake("token", "--role", "ingest", "--name", "a", "--source", "source-a", data=tmp_path / "data")
    assert made.returncode == 0, made.stderr
    secret, _, table = made.stdout.partition("\n")
    assert re.fullmatch(r"olk_[A-Za-z0-9_-]{43}", secret)
    assert secret not in table + made.stderr
    (read,) = tomllib.loads(table)["tokens"]
    assert read == {"name": "a", "role": "ingest", "hash": hash_of(secret), "sources": ["source-a"]}
    inline = f'[{{ name = "a", role = "ingest", hash = "{read["hash"]}", sources = ["source-a"] }}]'
    environ = {"oncelake_tokens": inline, "oncelake_api__host": "0.0.0.0", "oncelake_log__level": "debug"}
    with Service(tmp_path / "data", **environ) as service:
        url = service.url.replace("0.0.0.0", "127.0.0.1") + "/records"
        bearer = {"authorization": f"Bearer {secret}"}
        assert httpx.post(url, json=record(1)).status_code == 401
        assert httpx.post(url, json=record(1), headers=bearer).status_code == 201
        assert httpx.post(url, json=record(2, "source-b"), headers=bearer).status_code == 422
        assert httpx.get(url, params={"recordId": "rec-1"}, headers=bearer).status_code == 403
        assert service.stop() == 0
        assert "requests need one of 1 tokens" in service.log()
        assert secret not in service.log() and read["hash"] not in service.log()
    shown = oncelake("check-config", data=tmp_path / "data", **environ).stdout
    assert '"name": "a"' in shown and read["hash"] not in shown


def test_without_tokens_it_says_that_only_this_machine_is_served(tmp_path: Path) -> None:
    """And another host is refused, with the command that mends it."""
    with Service(tmp_path / "data") as service:
        assert service.post(json.dumps(record()).encode()).status_code == 201
        service.stop()
        assert "no tokens are configured: only this machine is served" in service.log()
    refused = oncelake("serve", "--host", "0.0.0.0", data=tmp_path / "data")
    assert refused.returncode == 2 and "oncelake token" in refused.stderr


@pytest.mark.parametrize(
    "options", [("--role", "read", "--source", "a"), ("--role", "ingest", "--source", ""), ("--role", "root")]
)
def test_a_token_that_could_not_be_configured_is_not_made(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Wrong usage, and nothing on standard output."""
    made = oncelake("token", "--name", "a", *options, data=tmp_path)
    assert (made.returncode, made.stdout) == (2, "")


def test_finding_a_token_takes_as_long_for_the_first_as_for_none() -> None:
    """Every hash is compared: a hundred thousand of them, so that an early end would show many times over."""
    many = Tokens([Token(str(n), "read", hash_of(str(n))) for n in range(20_000)])

    def spent(token: str) -> float:
        begin = time.process_time()
        many.find(token)
        return time.process_time() - begin

    first = min(spent("0") for _ in range(5))
    none = min(spent("none") for _ in range(5))
    assert many.find("0") is not None and many.find("none") is None
    assert first > none / 4
