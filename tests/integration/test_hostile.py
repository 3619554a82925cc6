"""What is made to harm ends in a clear 4xx or a receipt: never a 500, never a stall, never the end of the service."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from litestar.testing import TestClient

from api.app import create_app
from api.ports import ApiSettings
from ingest import apart, files
from ingest.decode import Limits, decode_body
from ingest.formats import Compression, Format
from ingest.record import Rules
from service.config import Config, Ingest, StoreConfig
from service.runtime import Lake, Reader
from store.engine import Engine
from store.errors import TransientError, UndecodableError
from tests.support.batches import MEDIA_TYPES, encoded
from tests.support.service import wait_until

GOLDEN = Path(__file__).parents[1] / "golden" / "hostile"
PARQUET, ARROW = MEDIA_TYPES["parquet"], MEDIA_TYPES["arrows"]
JSON, NDJSON, CSV = MEDIA_TYPES["json"], MEDIA_TYPES["ndjson"], MEDIA_TYPES["csv"]
HEADER = b"recordId,time,sourceId,destinationId,type,value,unit,reference\n"
QUICK_S = 20.0


def record(number: int = 1, **fields: Any) -> dict[str, Any]:
    return {
        "recordId": f"rec-{number}",
        "time": "2024-03-01T12:00:00Z",
        "sourceId": "source-a",
        "destinationId": "dest-1",
        "type": "positive",
        "value": "1.5",
        "unit": "SEK",
        "reference": "r",
        **fields,
    }


def line(**fields: Any) -> bytes:
    return json.dumps(record(**fields)).encode()


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    root = tmp_path_factory.mktemp("hostile") / "data"
    limits = Ingest(max_decompressed_bytes=64 << 20, max_ratio=200, max_batch_records=5_000, rescan_s=0.05)
    lake = Lake(Config(store=StoreConfig(data_dir=str(root), fsync=False, flush_interval_s=3_600.0), ingest=limits))
    lake.start()
    try:
        yield lake
    finally:
        lake.stop()


@pytest.fixture(scope="module")
def client(lake: Lake) -> Iterator[TestClient[Any]]:
    temp = lake.store.root / "internal" / "tmp"
    lake.store.disk.make_directory(temp)
    engine = Engine(lake.store.root, temp, memory="64MB")
    with TestClient(create_app(lake.intake, Reader(lake, engine), ApiSettings())) as client:
        yield client
    engine.close()


def post(client: TestClient[Any], data: bytes, media_type: str, encoding: str | None = None) -> httpx.Response:
    headers = {"content-type": media_type, **({"content-encoding": encoding} if encoding else {})}
    begin = time.monotonic()
    found = client.post("/records", content=data, headers=headers)
    assert time.monotonic() - begin < QUICK_S
    return found


def huge_page(compression: str) -> bytes:
    """A small Parquet file whose first page says that it is 2 GiB large when unpacked."""
    sink = io.BytesIO()
    table = pa.Table.from_pylist([record(n) for n in range(3)])
    pq.write_table(table, sink, compression=compression, use_dictionary=False)
    data = sink.getvalue()
    at = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0).column(0).data_page_offset
    assert data[at] == 0x15 and data[at + 2] == 0x15  # Thrift: two numbers, the type of the page and its size
    return data[: at + 3] + b"\xfe\xff\xff\xff\x0f" + data[at + 4 :]


def nested(depth: int) -> bytes:
    return b'{"recordId":' + b"[" * depth + b"]" * depth + b"}"


def stream(*columns: pa.Array) -> bytes:
    names = list(record())
    batch = pa.RecordBatch.from_arrays(list(columns), names=names[: len(columns)])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


def wild_offsets() -> bytes:
    """An Arrow stream with a text column whose offsets point far outside of its bytes."""
    texts = {**record(), "recordId": "x" * 90}
    data = stream(*[pa.array([str(value)]) for value in texts.values()])
    offsets = b"\0\0\0\0\x5a\0\0\0"
    before, found, after = data.rpartition(offsets)  # the last one is in the body, another in the message about it
    assert found
    return before + b"\0\0\0\0\xff\xff\xff\x7f" + after


def bomb(size: int) -> bytes:
    return b"[" + b" " * size + b"]"


HOSTILE: dict[str, tuple[bytes, str, str | None, int, str]] = {
    "a deep value": (nested(100), JSON, None, 400, "too_deep"),
    "a very deep value": (nested(100_000), JSON, None, 400, "too_deep"),
    "open brackets": (b"[" * 1_000_000, JSON, None, 400, "too_deep"),
    "open braces": (b'{"a":' * 500_000, JSON, None, 400, "too_deep"),
    "a deep element": (b"[" + nested(70) + b"]", JSON, None, 400, "too_deep"),
    "no UTF-8": (b'{"recordId":"\xff\xfe"}', JSON, None, 400, "undecodable"),
    "a bare surrogate": (b'{"recordId":"\xed\xa0\x80"}', JSON, None, 400, "undecodable"),
    "NUL bytes": (b"\0" * 100, JSON, None, 400, "undecodable"),
    "an escaped NUL": (line(recordId="a\0b"), JSON, None, 422, "invalid_record"),
    "an escaped surrogate": (line(recordId="\ud800"), JSON, None, 422, "invalid_record"),
    "NaN": (line().replace(b'"1.5"', b"NaN"), JSON, None, 400, "undecodable"),
    "Infinity": (line().replace(b'"1.5"', b"-Infinity"), JSON, None, 400, "undecodable"),
    "a number of a million digits": (line().replace(b'"1.5"', b"9" * 1_000_000), JSON, None, 422, "invalid_record"),
    "an exponent of a billion": (line().replace(b'"1.5"', b"1e999999999"), JSON, None, 422, "invalid_record"),
    "a negative exponent": (line().replace(b'"1.5"', b"1e-999999999999999999999"), JSON, None, 422, "invalid_record"),
    "a text NaN": (line(value="NaN"), JSON, None, 422, "invalid_record"),
    "a long id": (line(recordId="x" * 1_000_000), JSON, None, 422, "invalid_record"),
    "a thousand unknown fields": (line(**{f"f{n}": n for n in range(1_000)}), JSON, None, 422, "invalid_record"),
    "a megabyte of a name": (line(**{"n" * 1_000_000: 1}), JSON, None, 422, "invalid_record"),
    "5 MiB of one record": (line(reference="x" * (5 << 20)), JSON, None, 422, "invalid_record"),
    "too many records": (b"{}\n" * 6_000, NDJSON, None, 413, "too_many_records"),
    "a gzip bomb": (gzip.compress(bomb(100 << 20), 9), JSON, "gzip", 413, "too_large_ratio"),
    "a zstd bomb": (zstandard.compress(bomb(100 << 20), 19), JSON, "zstd", 413, "too_large_ratio"),
    "bombs in a row": (gzip.compress(bomb(1 << 20)) * 100, NDJSON, "gzip", 413, "too_large_ratio"),
    "a zstd window of 2 GiB": (b"\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00", JSON, "zstd", 400, "undecodable"),
    "a cut gzip": (gzip.compress(line())[:-9], JSON, "gzip", 400, "undecodable"),
    "no gzip": (line(), JSON, "gzip", 400, "undecodable"),
    "gzip in gzip": (gzip.compress(gzip.compress(line())), JSON, "gzip", 400, "undecodable"),
    "an open quote": (HEADER + b'"' + b"x" * 1_000_000, CSV, None, 200, ""),
    "only quotes": (b'"' * 1_000_001, CSV, None, 400, "undecodable"),
    "a header of commas": (b"," * 100_000 + b"\n", CSV, None, 422, "invalid_schema"),
    "a row of commas": (HEADER + b"," * 1_000_000 + b"\n", CSV, None, 200, ""),
    "NUL in CSV": (HEADER + b"\0,\0,\0,\0,\0,\0,\0,\0\n", CSV, None, 200, ""),
    "a CR for a line end": (HEADER.replace(b"\n", b"\r") + b"a,b\r", CSV, None, 422, "invalid_schema"),
    "a Parquet file that aborts": (GOLDEN.joinpath("abort.parquet").read_bytes(), PARQUET, None, 400, "undecodable"),
    "a page of 2 GiB": (huge_page("gzip"), PARQUET, None, 400, "undecodable"),
    "a plain page of 2 GiB": (huge_page("none"), PARQUET, None, 400, "undecodable"),
    "a footer of 4 GiB": (b"PAR1" + b"\xff" * 20 + b"\xff\xff\xff\xffPAR1", PARQUET, None, 400, "undecodable"),
    "offsets of nowhere": (wild_offsets(), ARROW, None, 400, "undecodable"),
    "a message of 2 GiB": (b"\xff\xff\xff\xff\xff\xff\xff\x7f" + b"x" * 100, ARROW, None, 400, "undecodable"),
    "a schema of floats": (stream(*[pa.array([0.5])] * 8), ARROW, None, 422, "invalid_schema"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_ends_in_a_clear_answer(client: TestClient[Any], name: str) -> None:
    """The status and code that say what is wrong, within seconds; 200 is a batch whose records are all rejected."""
    data, media_type, encoding, status, code = HOSTILE[name]
    found = post(client, data, media_type, encoding)
    assert found.status_code == status, found.text[:500]
    content = found.json()
    if status == 200:
        assert content["accepted"] == 0 and content["rejected"] >= 1
    else:
        assert content["code"] == code and content["detail"]
        assert len(found.content) < 20_000
    assert client.get("/health").json()["status"] == "ok"


def test_a_deep_line_of_ndjson_is_one_rejected_record(client: TestClient[Any]) -> None:
    """As any line that cannot be read; the others are taken."""
    rows = [
        line(recordId="deep-1"),
        nested(65),
        nested(50_000),
        b'{"a":"' + b"[" * 100 + b'"}',
        line(recordId="deep-2"),
    ]
    found = post(client, b"\n".join(rows), NDJSON).json()
    assert (found["accepted"], found["rejected"]) == (2, 3)
    codes = [problem["errors"][0]["code"] for problem in found["problems"]]
    assert codes == ["malformed", "malformed", "missing"]  # brackets in a string are no nesting


def test_hostile_values_name_no_file(client: TestClient[Any], lake: Lake) -> None:
    """Whatever texts hold, the only directories of records are days."""
    texts = [
        "../../../x",
        "/etc/passwd",
        "..",
        "a/../../b",
        "date=1999-01-01",
        "%2e%2e%2f",
        "x'; DROP TABLE r; --",
        "*",
        "~",
    ]
    rows = [
        record(recordId=f"name-{text}", sourceId=text, destinationId=text, reference=text, unit=text) for text in texts
    ]
    assert post(client, encoded(rows, "ndjson"), NDJSON).json()["accepted"] == len(texts)
    lake.store.flush_once()
    found = client.get("/records/aggregations", params={"destinationId": texts, "include": "totals"}).json()
    assert sorted(group["destinationId"] for group in found["groups"]) == sorted(texts)
    names = {str(path.relative_to(lake.store.root / "records")) for path in (lake.store.root / "records").rglob("*")}
    assert names and all(re.fullmatch(r"date=2024-03-01(/[0-9a-z-]+\.parquet)?", name) for name in names), names


@pytest.mark.parametrize(
    "path",
    [
        "/records/..%2f..%2fetc%2fpasswd", "/records/%00", "/records/%ff", "/records/" + "a" * 5_000, "/records//",
        "/records/%", "/records/'%20OR%201=1%20--", "/records/{}", "/%2e%2e/%2e%2e/etc/passwd", "//records",
    ],
)  # fmt: skip
def test_hostile_paths_are_no_more_than_ids(client: TestClient[Any], path: str) -> None:
    """404, or 400 where they are no text."""
    assert client.get(path).status_code in (400, 404)


@pytest.mark.parametrize(
    "name", ["startTime", "destinationId", "unit", "limit", "cursor", "asOf", "include", "reference"]
)
@pytest.mark.parametrize("text", ["' OR 1=1 --", "'; ATTACH '/etc/passwd'; --", "\0", "\ud7ff", "{}", "$1", "9" * 400])
def test_sql_in_a_parameter_is_a_text_or_an_error(client: TestClient[Any], name: str, text: str) -> None:
    """Bound as a value, or refused by its grammar."""
    found = client.get("/records/aggregations", params={name: text})
    assert found.status_code in (200, 400)
    if found.status_code == 200:
        assert found.json()["groups"] == []


def test_what_is_no_file_goes_to_failed_with_a_reason(lake: Lake) -> None:
    """Links, pipes, sockets and devices: not opened, not followed."""
    inbox, failed = lake.store.root / "inbox", lake.store.root / "failed"
    outside = lake.store.root.parent / "outside.ndjson"
    outside.write_bytes(line(recordId="outside") + b"\n")
    inbox.joinpath("link.ndjson").symlink_to(outside)
    inbox.joinpath("loop.ndjson").symlink_to("loop.ndjson")
    inbox.joinpath("dangling.ndjson").symlink_to("/nowhere")
    inbox.joinpath("folder.ndjson").symlink_to(lake.store.root.parent)
    os.mkfifo(inbox / "pipe.ndjson")
    names = ["link", "loop", "dangling", "folder", "pipe"]
    if os.geteuid() == 0:
        try:
            os.mknod(inbox / "device.ndjson", 0o20666, os.makedev(1, 5))  # /dev/zero
            names.append("device")
        except PermissionError:
            pass  # a container without devices
    receipts = [failed / f"{name}.ndjson.receipt.json" for name in names]
    wait_until(lambda: all(path.exists() for path in receipts), 30)
    assert {json.loads(path.read_bytes())["code"] for path in receipts} == {"not_a_regular_file"}
    assert outside.read_bytes() == line(recordId="outside") + b"\n"
    assert lake.store.find("outside") is None


def test_a_hard_link_is_a_file_and_its_other_name_stays(lake: Lake) -> None:
    """It is taken and moved; whoever made it keeps the other name and its content."""
    outside = lake.store.root.parent / "hard.ndjson"
    outside.write_bytes(line(recordId="hard") + b"\n")
    os.link(outside, lake.store.root / "inbox" / "hard.ndjson")
    receipt = lake.store.root / "processed" / "hard.ndjson.receipt.json"
    wait_until(receipt.exists, 30)
    assert json.loads(receipt.read_bytes())["accepted"] == 1
    assert outside.read_bytes() == line(recordId="hard") + b"\n"


def test_a_file_that_ends_its_reader_fails_with_a_receipt_and_the_next_is_taken(lake: Lake) -> None:
    """The service would otherwise end at it, and at each start again."""
    inbox, failed = lake.store.root / "inbox", lake.store.root / "failed"
    files = {
        "abort.parquet": GOLDEN.joinpath("abort.parquet").read_bytes(),
        "huge.parquet": huge_page("gzip"),
        "huge.parquet.gz": gzip.compress(huge_page("none")),
        "bomb.json.zst": zstandard.compress(bomb(100 << 20), 19),
        "deep.json": nested(1_000),
        "wild.arrows": wild_offsets(),
    }
    for name, data in files.items():
        inbox.joinpath(f".{name}").write_bytes(data)
        inbox.joinpath(f".{name}").rename(inbox / name)
    wait_until(lambda: all((failed / f"{name}.receipt.json").exists() for name in files), 60)
    codes = {name: json.loads((failed / f"{name}.receipt.json").read_bytes())["code"] for name in files}
    assert codes == {
        "abort.parquet": "undecodable", "huge.parquet": "undecodable", "huge.parquet.gz": "undecodable",
        "bomb.json.zst": "too_large_ratio", "deep.json": "too_deep", "wild.arrows": "undecodable",
    }  # fmt: skip
    inbox.joinpath("good.parquet").write_bytes(encoded([record(recordId="after")], "parquet"))
    receipt = lake.store.root / "processed" / "good.parquet.receipt.json"
    wait_until(receipt.exists, 30)
    assert json.loads(receipt.read_bytes())["accepted"] == 1


def test_names_of_files_that_are_odd_come_back_in_their_receipts(lake: Lake) -> None:
    """Line ends, quotes, no UTF-8, and 255 bytes."""
    inbox, processed = lake.store.root / "inbox", lake.store.root / "processed"
    odd = ["a\nb.ndjson", "a'\"b.ndjson", "-rf.ndjson", "%2e%2e.ndjson", "é\u202e.ndjson", "a;b|c&.ndjson"]
    for number, name in enumerate(odd):
        (inbox / name).write_bytes(line(recordId=f"odd-{number}") + b"\n")
    wait_until(lambda: all((processed / f"{name}.receipt.json").exists() for name in odd), 30)
    assert [json.loads((processed / f"{name}.receipt.json").read_bytes())["file"] for name in odd] == odd


def test_the_helper_is_started_again_when_it_is_gone() -> None:
    """And a body that waits for it is read all the same."""
    data = encoded([record()], "parquet")

    def accepted() -> int:
        return sum(chunk.received for chunk in decode_body(data, Format.PARQUET, Compression.NONE, Rules(), Limits()))

    assert accepted() == 1
    process = apart._helper._process
    assert process is not None
    process.kill()
    process.wait()
    assert accepted() == 1
    assert apart._helper._process is not process


def test_a_reader_that_is_ended_is_an_undecodable_batch() -> None:
    """Whoever reads on in this process is not harmed."""
    abort = GOLDEN.joinpath("abort.parquet").read_bytes()
    for _ in range(3):
        with pytest.raises(UndecodableError, match="ended by it"):
            decode_body(abort, Format.PARQUET, Compression.NONE, Rules(), Limits())


def test_a_file_that_is_exchanged_after_it_was_looked_at_is_not_read(tmp_path: Path) -> None:
    """For a link to somebody else's file, or for a pipe that would be waited for."""
    path = tmp_path / "a.ndjson"
    path.write_bytes(b"mine")
    seen = path.lstat()
    with files._same(path, seen) as same:
        path.unlink()
        assert same.read_bytes() == b"mine"
    path.symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"), files._same(path, seen):
        raise AssertionError("the link was followed")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(TransientError, match="exchanged"), files._same(path, seen):
        raise AssertionError("the pipe was taken")
