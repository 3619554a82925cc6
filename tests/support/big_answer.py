"""One answer with every record of a large store, in one format, measured in a process of its own.

`python -m tests.support.big_answer ROWS ROOT FORM` takes the files of a snapshot as JSON from standard input. It
streams the answer to a file and samples the memory meanwhile. Then it reads the file again, and prints what it found:
how often each seq is there, the sum of all values, and a digest of all rows as canonical JSON, in their order.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from api.answers import json_answer
from api.questions import Question
from api.rows import ARROW, CSV, NDJSON, PARQUET, flat_answer
from store.canonical import render_objects, text_of
from store.engine import Engine
from store.filters import Filters
from store.queries import RECORDS
from store.snapshot import SealedFile, Snapshot

_FORMS = {"ndjson": NDJSON, "csv": CSV, "arrow": ARROW, "parquet": PARQUET}
_RECORD = re.compile(rb'[{]"seq":[^}]*[}]')


def main(rows: int, root: Path, form: str) -> None:
    """Stream, measure, read again, print."""
    read = sys.stdin.buffer.read()
    files = msgspec.json.decode(read, type=list[SealedFile], dec_hook=lambda kind, value: kind(value))
    snapshot = Snapshot(rows, rows, tuple(files), ())
    engine = Engine(root, root, memory="192MB", threads=2)
    path = root / f"answer.{form}"
    _write(path, _answer(engine, snapshot, Filters(end_us=0), form))  # what is loaded once, whatever is asked
    before, began = _anonymous(), time.process_time()
    peak = [before]
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], _anonymous())

    sampler = threading.Thread(target=sample)
    sampler.start()
    _write(path, _answer(engine, snapshot, Filters(), form))
    done.set()
    sampler.join()
    spent = time.process_time() - began
    engine.close()
    measured = {"added": peak[0] - before, "us_a_row": spent / rows * 1e6, "bytes": path.stat().st_size}
    print(json.dumps({**measured, **_read_again(path, rows, form)}))


def _answer(engine: Engine, snapshot: Snapshot, filters: Filters, form: str) -> Iterator[bytes]:
    question = Question(filters)
    if form == "json":
        with json_answer(engine, snapshot, question) as found:
            yield from found.pieces
    else:
        with flat_answer(engine, snapshot, question, _FORMS[form]) as found:
            yield from found.pieces


def _write(path: Path, pieces: Iterator[bytes]) -> None:
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)


def _anonymous() -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def _read_again(path: Path, rows: int, form: str) -> dict[str, Any]:
    seen = np.zeros(rows + 1, dtype=np.uint8)
    digest, scaled = hashlib.blake2b(digest_size=16), 0
    for text, seqs, values in _blocks(path, form):
        digest.update(text)
        assert len(seqs) == len(values) == text.count(b"\n")
        np.add.at(seen, seqs, 1)
        scaled += int(pc.sum(values.cast(pa.decimal128(38, 9))).as_py().scaleb(9))
    return {
        "once": int((seen[1:] == 1).sum()),
        "other": int((seen > 1).sum()) + int(seen[0]),
        "sum": scaled,
        "digest": digest.hexdigest(),
    }


def _blocks(path: Path, form: str) -> Iterator[tuple[bytes, Any, pa.Array]]:
    """Every row as canonical JSON with a line feed, its seq and its value, in blocks."""
    batches: Any
    if form in ("json", "ndjson"):
        for text in _records_in(path):
            seqs = np.array(re.findall(rb'[{]"seq":([0-9]+),', text), dtype="S").astype(np.int64)
            yield text, seqs, pa.array(re.findall(rb'"value":"([^"]*)"', text), pa.binary()).cast(pa.string())
        return
    if form == "csv":
        columns = {name: pa.string() for name in RECORDS.names} | {"seq": pa.int64()}
        batches = pa_csv.open_csv(path, convert_options=pa_csv.ConvertOptions(column_types=columns))
    elif form == "arrow":
        batches = pa.ipc.open_stream(path.open("rb"))
    else:
        batches = pq.ParquetFile(path).iter_batches(32_768)
    for batch in batches:
        yield text_of(render_objects(batch, "\n")), batch.column("seq").to_numpy(), batch.column("value")


def _records_in(path: Path) -> Iterator[bytes]:
    """The objects of records in a text; the sample has no braces in its strings."""
    rest = b""
    with path.open("rb") as file:
        while block := file.read(8 << 20):
            whole, brace, rest = (rest + block).rpartition(b"}")
            if records := _RECORD.findall(whole + brace):
                yield b"\n".join(records) + b"\n"
    assert path.suffix != ".json" or (whole + brace).endswith(b'],"nextCursor":null}')


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
