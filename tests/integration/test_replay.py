"""`oncelake replay`: the lines of any range of seqs, equal to the outbox, beside a running service and without one."""

from __future__ import annotations

from pathlib import Path

from tests.support.feeds import FEEDS, all_lines, body_of
from tests.support.service import Service, oncelake


def test_replay_is_the_outbox(tmp_path: Path) -> None:
    """Across Parquet and hot rows, with rules that change, to standard output and to a file; errors are clear."""
    data, output = tmp_path / "data", tmp_path / "lines.jsonl"
    settings = {"oncelake_store__flush_interval_s": "600", "oncelake_outbox__segment_bytes": "4000"}
    with Service(data, oncelake_alerts__threshold="100", **settings) as service:
        service.post(body_of(0, 60))
        assert service.stop() == 0  # a flush
    with Service(data, oncelake_alerts__threshold="50.5", **settings) as service:
        service.post(body_of(60, 40))
        for feed in FEEDS:
            lines = all_lines(data, feed)
            for first, last in ((1, 100), (55, 65)):
                found = oncelake("replay", "--feed", feed, "--from", str(first), "--to", str(last), data=data)
                expected = [line.decode() + "\n" for seq, line in lines if first <= seq <= last]
                assert (found.returncode, found.stdout, found.stderr) == (0, "".join(expected), "")
        assert oncelake("replay", "--from", "99", "--output", str(output), data=data).returncode == 0
        assert output.read_bytes() == b"".join(line + b"\n" for _, line in all_lines(data, "notifications")[98:])
        for arguments, code, message in (
            (["--from", "1", "--to", "101"], 1, "records up to seq 100: there is no seq 101 yet"),
            (["--from", "102"], 1, "there is no seq 102 yet"),
            (["--from", "0"], 2, "the first seq is 1"),
            (["--from", "9", "--to", "8"], 2, "--from 9 is above --to 8"),
        ):
            failed = oncelake("replay", *arguments, data=data)
            assert (failed.returncode, failed.stdout) == (code, "") and message in failed.stderr
    missing = oncelake("replay", data=tmp_path / "nothing")
    assert missing.returncode == 1 and "is no data directory" in missing.stderr
