"""Reading a feed: the committed lines above any seq, to the byte, wherever they come from."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox import feed as feeds
from outbox.feed import Feed, source_beside
from outbox.news import News
from outbox.remake import Origin, remade
from store.errors import CorruptionError
from tests.support.feeds import FEEDS, all_lines, beside, body_of, fill, inside, read_all
from tests.support.lake import Lake


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    lake = Lake(tmp_path / "data", threshold="100")
    fill(lake, 12, 9)
    yield lake
    lake.close()


@pytest.mark.parametrize("name", FEEDS)
def test_a_feed_is_what_stands_in_its_segments(lake: Lake, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From every seq, in any steps, in this process and beside it; the place is found by bisection."""
    monkeypatch.setattr(feeds, "_NEAR_BYTES", 200)
    lake.store.write_committed()
    lines = all_lines(lake.root, name)
    assert len(list((lake.root / "outbox" / name).glob("*.jsonl"))) > 1
    for feed in (inside(lake.store, name, lake.root / "tmp"), beside(lake.root, name, lake.root / "tmp")):
        assert feed.newest() == 108
        for after in range(110):
            assert feed.read(after, 5, 1 << 20) == [line for line in lines if line[0] > after][:5]
        assert read_all(feed) == lines
        assert feed.read(0, 1_000, 1) == lines[:1]


@pytest.mark.parametrize("name", FEEDS)
def test_lines_above_the_committed_seq_are_never_given_out(tmp_path: Path, name: str) -> None:
    """Reading ends at the committed seq, also in the middle of a segment; what a crash left is no line."""
    lake = Lake(tmp_path / "data", threshold="100", segment_bytes=1 << 20)
    fill(lake, 3, 20)
    lines = all_lines(lake.root, name)
    late = dataclasses.replace(source_beside(lake.root, name, lake.root / "tmp"), newest=lambda: 60)
    lake.post(body_of(60, 20))
    more = all_lines(lake.root, name)
    assert len(more) > len(lines)
    newest = sorted((lake.root / "outbox" / name).glob("*.jsonl"))[-1]
    with newest.open("ab") as file:
        file.write(b'{"seq":81,"processedAt":"torn')
    assert read_all(Feed(name, late), limit=100, max_bytes=1 << 20) == lines
    assert read_all(inside(lake.store, name, lake.root / "tmp")) == more
    lake.close()


def test_a_line_that_is_missing_is_an_error(lake: Lake) -> None:
    """A reader must not go past a gap as if nothing were there."""
    paths = sorted((lake.root / "outbox/notifications").glob("*.jsonl"))
    content = paths[1].read_bytes()
    paths[1].write_bytes(b"".join(content.splitlines(keepends=True)[1:]))
    with pytest.raises(CorruptionError, match="is damaged or missing"):
        read_all(inside(lake.store, "notifications", lake.root / "tmp"))
    paths[1].unlink()
    with pytest.raises(CorruptionError, match="is damaged or missing"):
        read_all(inside(lake.store, "notifications", lake.root / "tmp"))
    paths[0].unlink()
    with pytest.raises(CorruptionError, match="missing"):
        inside(lake.store, "notifications", lake.root / "tmp").read(0, 1, 1)


@pytest.mark.parametrize("name", FEEDS)
def test_lines_made_again_are_those_that_were_written(lake: Lake, name: str) -> None:
    """For ranges in Parquet, in hot rows and across both, in pieces of any size."""
    lines = all_lines(lake.root, name)
    origin = Origin(lake.store.snapshot(), lake.store.state.rules)
    dice = random.Random(6)
    ranges = [(1, 108), (1, 1), (108, 108), (99, 101), *(sorted(dice.choices(range(1, 109), k=2)) for _ in range(5))]
    for first, last in ranges:
        made = remade(origin, name, first, last, lake.root, piece_rows=dice.choice([5, 17, 500]))
        assert list(made) == [line for line in lines if first <= line[0] <= last], (first, last)


def test_records_that_are_missing_are_an_error(lake: Lake) -> None:
    """Nothing is made of records that are not there."""
    snapshot = lake.store.snapshot()
    first = min(file.min_seq for file in snapshot.files)
    for path in {file.path for file in snapshot.files if file.min_seq == first}:
        path.unlink()
    kept = tuple(file for file in snapshot.files if file.path.exists())
    broken = Origin(type(snapshot)(snapshot.seq, snapshot.flushed, kept, snapshot.hot), lake.store.state.rules)
    with pytest.raises(CorruptionError, match="oncelake verify"):
        list(remade(broken, "notifications", 1, 108, lake.root))


def test_a_waiting_reader_hears_of_a_commit_and_of_the_end() -> None:
    """And of nothing once it has left."""
    news, calls = News(), []
    with news.listening(lambda: calls.append(1)):
        news.tell()
    news.tell()
    assert calls == [1]
    assert not news.wait(lambda: False, 0.0)
    assert news.wait(lambda: True, 60.0)
    news.end()
    assert news.is_over and not news.wait(lambda: False, 60.0)
