"""An answer with every record of a large store: whole, and in constant memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from service.generate import Sample, chunks
from store.parquet import describe, partitions, write_partition
from store.schema import STORED

ROOT = Path(__file__).parents[2]
ROWS = 5_000_000
FLUSH_ROWS = 500_000
MAX_ADDED_BYTES = 300_000_000

# Runs as a process of its own: reads the files of a snapshot from standard input, streams the answer, and counts.
READER = """
import json, re, sys, threading
from pathlib import Path
import msgspec, numpy as np
from api.answers import json_answer
from api.questions import Question
from store.engine import Engine
from store.queries import Filters
from store.snapshot import SealedFile, Snapshot

rows, root = int(sys.argv[1]), Path(sys.argv[2])
files = msgspec.json.decode(sys.stdin.buffer.read(), type=list[SealedFile], dec_hook=lambda kind, value: kind(value))
engine = Engine(root, root, memory="192MB", threads=2)

def anonymous():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", status)[1]) << 10

seen = np.zeros(rows + 1, dtype=np.uint8)
seen.fill(1)  # so that its pages are there before the measurement begins
seen.fill(0)
def answer(filters):
    with json_answer(engine, Snapshot(rows, rows, tuple(files), ()), Question(filters)) as found:
        yield from found.pieces

for _ in answer(Filters(end_us=0)):
    pass  # what is loaded once, whatever is asked
before = peak = anonymous()
done = threading.Event()

def sample():
    global peak
    while not done.wait(0.01):
        peak = max(peak, anonymous())

sampler = threading.Thread(target=sample)
sampler.start()
size, tail = 0, b""
for piece in answer(Filters()):
    size += len(piece)
    seqs = np.array(re.findall(rb'{"seq":([0-9]+),', piece), dtype="S").astype(np.int64)
    np.add.at(seen, seqs, 1)
    tail = (tail + piece)[-1000:]
done.set()
sampler.join()
engine.close()
print(json.dumps({
    "once": int((seen[1:] == 1).sum()), "other": int((seen > 1).sum()) + int(seen[0]), "size": size,
    "added": peak - before, "tail": tail.decode(),
}))
"""


def large_store(root: Path) -> list[dict[str, object]]:
    """The Parquet of ten flushes, each cut into the partitions of seven days."""
    files: list[dict[str, object]] = []
    for first in range(0, ROWS, FLUSH_ROWS):
        records = pa.concat_tables(chunks(Sample(FLUSH_ROWS, first=first)))
        files += flushed(root, records, first + 1)
    return files


def flushed(root: Path, records: pa.Table, first: int) -> list[dict[str, object]]:
    seqs = pa.array(np.arange(first, first + records.num_rows))
    processed = pa.array(np.full(records.num_rows, 1_710_000_000_000_000 + first)).cast(STORED.field("time").type)
    columns = {"seq": seqs, **dict(zip(records.column_names, records.columns, strict=True)), "processedAt": processed}
    table = pa.table([columns[name] for name in STORED.names], schema=STORED)
    files = []
    for partition in partitions(table):
        path = root / f"{partition.day}-{first}.parquet"
        write_partition(partition, path, (first, first + records.num_rows - 1))
        row = describe(path, path.name, partition.day)
        names = ("name", "day", "rows", "min_seq", "max_seq", "bytes", "sum")
        files.append(
            {
                "path": str(path),
                "min_time_us": row.min_time,
                "max_time_us": row.max_time,
                **{name: getattr(row, name) for name in names},
            }
        )
    return files


@pytest.mark.slow
def test_an_answer_with_five_million_records_is_whole_and_takes_constant_memory(tmp_path: Path) -> None:
    """Every record once, the last piece there, and less than 300 MB on top of what the process had."""
    files = large_store(tmp_path)
    found = subprocess.run(
        [sys.executable, "-c", READER, str(ROWS), str(tmp_path)],
        input=json.dumps(files), capture_output=True, text=True, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    answer = json.loads(found.stdout)
    assert (answer["once"], answer["other"]) == (ROWS, 0)
    assert answer["tail"].endswith('"}],"nextCursor":null}') and f'"count":{ROWS},' in answer["tail"]
    assert answer["added"] < MAX_ADDED_BYTES
