"""Real sinks: what a consumer finds is the feed, complete, in order, to the byte, whoever is killed on the way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from outbox.forwarder.shipper import Shipper
from outbox.forwarder.sinks.jetstream import matches
from outbox.forwarder.sinks.objects import ObjectSink
from outbox.forwarder.sinks.s3 import S3Bucket
from tests.support.forwarding import ListSource, drive, line_of, lines_of, shipper
from tests.support.servers import Server, make_bucket, nats_server, redis_server, s3_server

COUNT = 5_000


@pytest.fixture(scope="module")
def redis_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


def redis_url(server: Server, key: str, more: str = "") -> str:
    return f"redis://127.0.0.1:{server.port}/0?stream={key}{more}"


def refused(ship: Shipper) -> str:
    """Why it does not ship."""
    ship.step()
    assert ship.status().state == "refused"
    return ship.status().problem


def test_a_redis_stream_holds_the_feed(tmp_path: Path, redis_up: Server) -> None:
    """Under the ids of the seqs, and who subscribes to the channel hears it."""
    source = ListSource(lines_of(1, COUNT))
    with redis.Redis(port=redis_up.port) as client:
        heard = client.pubsub()
        heard.subscribe("ch")
        assert heard.get_message(timeout=5) is not None
        drive(shipper(tmp_path, source, redis_url(redis_up, "all", "&channel=ch")), COUNT)
        found = [(int(entry.split(b"-")[0]), fields[b"data"]) for entry, fields in client.xrange("all")]
        assert found == source.lines
        told = [message["data"] for _ in range(COUNT) if (message := heard.get_message(timeout=5))]
        assert told == [line for _, line in source.lines]
        heard.close()


def test_a_redis_channel_alone_tells_who_subscribes(tmp_path: Path, redis_up: Server) -> None:
    """Nothing is kept there, and no stream is made."""
    source = ListSource(lines_of(1, 50))
    with redis.Redis(port=redis_up.port) as client:
        heard = client.pubsub()
        heard.subscribe("only")
        assert heard.get_message(timeout=5) is not None
        drive(shipper(tmp_path, source, f"redis://127.0.0.1:{redis_up.port}/0?channel=only"), 50)
        told = [message["data"] for _ in range(50) if (message := heard.get_message(timeout=5))]
        assert told == [line for _, line in source.lines]
        assert not client.exists("only")
        heard.close()


def test_redis_takes_no_message_twice(tmp_path: Path, redis_up: Server) -> None:
    """A checkpoint that was lost, or is behind, costs no duplicate."""
    source = ListSource(lines_of(1, 300))
    drive(shipper(tmp_path / "a", source, redis_url(redis_up, "twice")), 300)
    source.lines = lines_of(1, 500)
    drive(shipper(tmp_path / "b", source, redis_url(redis_up, "twice")), 500)
    with redis.Redis(port=redis_up.port) as client:
        assert [fields[b"data"] for _, fields in client.xrange("twice")] == [line for _, line in source.lines]


def test_a_redis_stream_that_is_ahead_or_of_another_store_is_refused(tmp_path: Path, redis_up: Server) -> None:
    """Its entries would have been swallowed as duplicates."""
    drive(shipper(tmp_path / "a", ListSource(lines_of(1, 20)), redis_url(redis_up, "ahead")), 20)
    assert "ahead of the store" in refused(
        shipper(tmp_path / "b", ListSource(lines_of(1, 10)), redis_url(redis_up, "ahead"))
    )
    other = ListSource([(seq, line_of(seq, salt="other")) for seq in range(1, 31)])
    assert "another message" in refused(shipper(tmp_path / "c", other, redis_url(redis_up, "ahead")))
    with redis.Redis(port=redis_up.port) as client:
        client.set("text", "x")
        assert client.xlen("ahead") == 20
    assert "no stream" in refused(shipper(tmp_path / "d", ListSource(lines_of(1, 9)), redis_url(redis_up, "text")))


def test_dead_letters_go_behind_the_end_of_a_redis_stream(tmp_path: Path, redis_up: Server) -> None:
    """Its ids only rise; `data` still tells the seq, and the stream goes on behind them."""
    source = ListSource(lines_of(1, 10))
    ship = shipper(tmp_path, source, redis_url(redis_up, "dead"))
    drive(ship, 10)
    ship.desk.bury([(3, line_of(3)), (4, line_of(4))], "test")  # type: ignore[list-item]
    ship.desk.ask_to_retry()
    ship._clock.at += 2  # type: ignore[attr-defined]
    drive(ship, 10)
    source.lines = lines_of(1, 12)
    drive(ship, 12)
    with redis.Redis(port=redis_up.port) as client:
        found = [(entry.decode(), json.loads(fields[b"data"])["seq"]) for entry, fields in client.xrange("dead", "10")]
    assert found == [("10-0", 10), ("10-1", 3), ("10-2", 4), ("11-0", 11), ("12-0", 12)]


def test_a_folder_holds_the_feed_in_closed_objects(tmp_path: Path) -> None:
    """Of so many lines, or after so many seconds; together they are the feed."""
    source, out = ListSource(lines_of(1, 250)), tmp_path / "out"
    ship = shipper(tmp_path, source, f"file://{out}", batch=100, linger_s=30.0)
    while ship.shipped < 200:
        ship._clock.at += ship.step()  # type: ignore[attr-defined]
    before = ship._clock.at  # type: ignore[attr-defined]
    drive(ship, 250)
    assert 29 < ship._clock.at - before < 31  # type: ignore[attr-defined]
    names = sorted(path.name for path in out.iterdir())
    assert names == [f"notifications-{first:020d}.jsonl" for first in (1, 101, 201)]
    assert b"".join((out / name).read_bytes() for name in names) == b"".join(line + b"\n" for _, line in source.lines)


def test_objects_never_overlap_whatever_the_checkpoint_says(tmp_path: Path) -> None:
    """The folder is asked where it ends, and what a killed attempt left beside is cleared away."""
    source, out = ListSource(lines_of(1, 130)), tmp_path / "out"
    drive(shipper(tmp_path / "a", source, f"file://{out}", batch=50), 130)
    (out / f".notifications-{101:020d}.jsonl.tmp").hardlink_to(out / f"notifications-{101:020d}.jsonl")
    source.lines = lines_of(1, 180)
    drive(shipper(tmp_path / "b", source, f"file://{out}", batch=50), 180)
    assert [path.name for path in out.glob(".*")] == []
    found = b"".join(path.read_bytes() for path in sorted(out.iterdir()))
    assert found == b"".join(line + b"\n" for _, line in source.lines)
    assert "ahead" in refused(shipper(tmp_path / "c", ListSource(lines_of(1, 60)), f"file://{out}"))


@pytest.fixture(scope="module")
def nats_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with nats_server(tmp_path_factory.mktemp("nats")) as server:
        yield server


def nats_url(server: Server, stream: str, subject: str) -> str:
    return f"nats://127.0.0.1:{server.port}?stream={stream}&subject={subject}"


def heard(server: Server, stream: str, subject: str) -> list[bytes]:
    """Every message of a subject."""

    async def read() -> list[bytes]:
        import nats

        client = await nats.connect(f"nats://127.0.0.1:{server.port}")
        try:
            context = client.jetstream()
            info = await context.stream_info(stream, subjects_filter=subject)
            count = (info.state.subjects or {}).get(subject, 0)
            reader = await context.subscribe(subject, stream=stream, ordered_consumer=True)
            return [(await reader.next_msg(timeout=30)).data for _ in range(count)]
        finally:
            await client.close()

    return asyncio.run(read())


def test_nats_takes_no_message_twice(tmp_path: Path, nats_up: Server) -> None:
    """A checkpoint that was lost costs no duplicate, and messages are the lines."""
    source = ListSource(lines_of(1, 3_000))
    drive(shipper(tmp_path / "a", source, nats_url(nats_up, "TWICE", "t.n")), 3_000)
    source.lines = lines_of(1, 4_000)
    drive(shipper(tmp_path / "b", source, nats_url(nats_up, "TWICE", "t.n")), 4_000)
    assert heard(nats_up, "TWICE", "t.n") == [line for _, line in source.lines]


def test_two_feeds_may_share_a_stream(tmp_path: Path, nats_up: Server) -> None:
    """The second subject is added to it, and each feed notices what the other one wrote in between."""
    source = ListSource(lines_of(1, 400))
    first = shipper(tmp_path / "a", source, nats_url(nats_up, "SHARED", "s.notifications"), batch=10)
    second = shipper(tmp_path / "b", source, nats_url(nats_up, "SHARED", "s.alerts"), batch=10, feed="alerts")
    for _ in range(200):
        for ship in (first, second):
            ship._clock.at += ship.step()  # type: ignore[attr-defined]
    drive(first, 400)
    drive(second, 400)
    for subject in ("s.notifications", "s.alerts"):
        assert heard(nats_up, "SHARED", subject) == [line for _, line in source.lines]
    assert first.status().failures > 0, "they did not meet"


def test_a_subject_that_is_ahead_or_of_another_store_is_refused(tmp_path: Path, nats_up: Server) -> None:
    """Its messages would have been swallowed as duplicates."""
    url = nats_url(nats_up, "AHEAD", "a.n")
    drive(shipper(tmp_path / "a", ListSource(lines_of(1, 20)), url), 20)
    assert "ahead of the store" in refused(shipper(tmp_path / "b", ListSource(lines_of(1, 10)), url))
    other = ListSource([(seq, line_of(seq, salt="other")) for seq in range(1, 31)])
    assert "another message" in refused(shipper(tmp_path / "c", other, url))
    assert len(heard(nats_up, "AHEAD", "a.n")) == 20


def test_dead_letters_that_went_to_nats_again_do_not_turn_it_back(tmp_path: Path, nats_up: Server) -> None:
    """The last message has an old seq then, and says behind which one it stands."""
    source, url = ListSource(lines_of(1, 10)), nats_url(nats_up, "DEAD", "d.n")
    ship = shipper(tmp_path / "a", source, url)
    drive(ship, 10)
    ship.desk.bury([(3, line_of(3))], "test")  # type: ignore[list-item]
    ship.desk.ask_to_retry()
    ship._clock.at += 2  # type: ignore[attr-defined]
    drive(ship, 10)
    source.lines = lines_of(1, 12)
    drive(shipper(tmp_path / "b", source, url), 12)
    assert [json.loads(line)["seq"] for line in heard(nats_up, "DEAD", "d.n")] == [*range(1, 11), 3, 11, 12]


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [("a.b", "a.b", True), ("a.*", "a.b", True), ("a.>", "a.b.c", True), (">", "a", True), ("a.>", "a", False),
     ("a.*", "a.b.c", False), ("a.b.c", "a.b", False), ("a", "b", False)],
)  # fmt: skip
def test_a_subject_falls_under_a_pattern(pattern: str, subject: str, expected: bool) -> None:
    """As NATS has it."""
    assert matches(pattern, subject) is expected


def test_a_bucket_is_asked_where_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it holds more objects than one list; one that is ahead is refused."""
    with s3_server(tmp_path / "s3") as server:
        make_bucket(server.port, "lake")
        url = f"s3://lake/deep/er?endpoint=http://127.0.0.1:{server.port}"
        source = ListSource(lines_of(1, 120))
        ship = shipper(tmp_path / "a", source, url, batch=5, linger_s=0.0)
        drive(ship, 120)
        alerts = shipper(tmp_path / "z", source, url, batch=100, linger_s=0.0, feed="alerts")
        drive(alerts, 120)
        for page in (1_000, 10, 1):
            monkeypatch.setattr("outbox.forwarder.sinks.s3._PAGE", page)
            bucket = S3Bucket(ship.table)
            assert bucket.newest("notifications-") == f"notifications-{116:020d}.jsonl"
            assert bucket.newest("alerts-") == f"alerts-{101:020d}.jsonl"
            assert bucket.newest("none-") is None
            assert ObjectSink(bucket, "notifications").open() == (120, line_of(120))
        assert not bucket.put_new(f"notifications-{116:020d}.jsonl", b"other")
        assert "ahead" in refused(shipper(tmp_path / "b", ListSource(lines_of(1, 60)), url))
        source.lines = lines_of(1, 130)
        drive(shipper(tmp_path / "c", source, url, linger_s=0.0), 130)
        assert bucket.newest("notifications-") == f"notifications-{121:020d}.jsonl"
