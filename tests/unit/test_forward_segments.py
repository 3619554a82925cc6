"""Reading a feed from its segments: committed lines, to the byte, from any seq on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from outbox.forwarder.segments import Segments
from store.errors import OncelakeError
from tests.support.forwarding import line_of


def lay(root: Path, seqs: list[int], cut: int, committed: int, feed: str = "notifications") -> dict[int, bytes]:
    """Segments of `cut` lines."""
    folder = root / "outbox" / feed
    folder.mkdir(parents=True, exist_ok=True)
    for at in range(0, len(seqs), cut):
        part = seqs[at : at + cut]
        (folder / f"{part[0]:020d}.jsonl").write_bytes(b"".join(line_of(seq) + b"\n" for seq in part))
    (folder / "committed.json").write_text(json.dumps({"seq": committed}))
    return {seq: line_of(seq) for seq in seqs}


@pytest.mark.parametrize("after", range(12))
def test_lines_above_a_seq_and_none_that_is_not_committed(tmp_path: Path, after: int) -> None:
    """Wherever the segments are cut."""
    lines = lay(tmp_path, list(range(1, 13)), 4, 10)
    expected = [(seq, lines[seq]) for seq in range(after + 1, 11)]
    source = Segments(tmp_path, "notifications")
    assert source.newest() == 10 and source.read(after, 100, 1 << 20) == expected
    assert source.read(after, 3, 1 << 20) == expected[:3]
    assert source.read(after, 3, 1) == expected[:1]


def test_reading_on_and_going_back(tmp_path: Path) -> None:
    """Its memory of a place does not depend on who asks for what."""
    lay(tmp_path, list(range(1, 31)), 7, 30)
    source = Segments(tmp_path, "notifications")
    found: list[int] = []
    while part := source.read(found[-1] if found else 0, 4, 1 << 20):
        found += [seq for seq, _ in part]
    assert found == list(range(1, 31))
    assert [seq for seq, _ in source.read(12, 2, 1 << 20)] == [13, 14]


def test_a_line_that_is_being_written_is_not_there_yet(tmp_path: Path) -> None:
    """Even where `committed.json` were wrong about it."""
    lay(tmp_path, [1, 2], 7, 9)
    with (tmp_path / f"outbox/notifications/{1:020d}.jsonl").open("ab") as file:
        file.write(line_of(3)[:20])
    assert [seq for seq, _ in Segments(tmp_path, "notifications").read(0, 9, 1 << 20)] == [1, 2]


def test_a_store_without_a_commit_has_no_lines(tmp_path: Path) -> None:
    """Nor any file."""
    assert Segments(tmp_path, "alerts").read(0, 9, 9) == [] and Segments(tmp_path, "alerts").newest() == 0


def test_lines_that_are_gone_are_not_passed_over(tmp_path: Path) -> None:
    """A missing first segment is an error that names the seqs."""
    lay(tmp_path, list(range(5, 9)), 2, 8)
    with pytest.raises(OncelakeError, match="lines 3 to 4"):
        Segments(tmp_path, "notifications").read(2, 9, 1 << 20)
    lay(tmp_path, [5, 9], 1, 9, feed="alerts")
    assert [seq for seq, _ in Segments(tmp_path, "alerts").read(2, 9, 1 << 20)] == [5, 9]
