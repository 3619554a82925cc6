"""The worker: `python -m bench.peer_worker FILE POSTGRES_SOCKET REDIS_SOCKET`. It imports nothing of ours."""

from __future__ import annotations

import json
import socket
import sys
import time

import psycopg

_INSERT = (
    "INSERT INTO records VALUES (%(recordId)s, %(time)s, %(sourceId)s, %(destinationId)s, %(type)s, %(value)s, "
    "%(unit)s, %(reference)s) ON CONFLICT DO NOTHING"
)
_SUM = (
    "INSERT INTO sums AS s VALUES (%(destinationId)s, %(reference)s, %(unit)s, 1, %(value)s) "
    'ON CONFLICT ("destinationId", "reference", "unit") '
    'DO UPDATE SET "count" = s."count" + 1, "total" = s."total" + EXCLUDED."total" RETURNING "count", "total"'
)


def _publish(redis: socket.socket, message: bytes) -> None:
    """XADD, spoken without a client library, which is faster."""
    parts = (b"XADD", b"notifications", b"*", b"m", message)
    redis.sendall(b"*5\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts))
    answer = b""
    while answer.count(b"\r\n") < 2:
        answer += redis.recv(4096)
    assert answer.startswith(b"$"), answer


def _work(path: str, host: str, redis_path: str) -> float:
    with open(path, encoding="utf-8") as file:
        lines = file.readlines()
    redis = socket.socket(socket.AF_UNIX)
    redis.connect(redis_path)
    with psycopg.connect(host=host, user="bench", dbname="postgres", prepare_threshold=1) as connection:
        began = time.perf_counter()
        for line in lines:
            record = json.loads(line, parse_float=str)
            if connection.execute(_INSERT, record).rowcount:
                found = connection.execute(_SUM, record).fetchone()
                assert found is not None
                record["previous"] = {"count": found[0] - 1, "total": str(found[1])}
                connection.commit()
                _publish(redis, json.dumps(record).encode())
        seconds = time.perf_counter() - began
    redis.close()
    return seconds


if __name__ == "__main__":
    print(json.dumps({"seconds": _work(sys.argv[1], sys.argv[2], sys.argv[3])}))
