"""Private links: what a reader of this process holds stays until it lets go, whatever becomes of `records/`."""

from __future__ import annotations

import errno
import gc
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from store.files import Disk
from store.links import LINKS, Links, link_name
from tests.support.direct import Direct, open_store, record_of


def flushed(root: Path, records: int = 9) -> list[str]:
    """A closed store with so many flushed records; the names of its Parquet files."""
    store = open_store(root)
    Direct(store).take([record_of(number) for number in range(records)])
    store.flush_once()
    names = [file.name for file in store.snapshot().files]
    store.close()
    return names


def test_a_snapshot_reads_files_that_have_left_records(tmp_path: Path) -> None:
    """Every path of a snapshot goes on when the directories of `records/` are gone."""
    flushed(tmp_path / "data")
    store = open_store(tmp_path / "data")
    snapshot = store.snapshot()
    shutil.rmtree(tmp_path / "data/records")
    assert sum(pq.read_metadata(file.path).num_rows for file in snapshot.files) == 9
    store.close()


def test_links_are_made_for_a_flush_and_again_after_a_copy(tmp_path: Path) -> None:
    """One for each file, of the same inode, also where a copy has split them; strays are removed."""
    names = flushed(tmp_path / "data")
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    (tmp_path / "copy" / LINKS / "stray.parquet").write_bytes(b"")
    (tmp_path / "copy" / LINKS / link_name(names[0])).unlink()
    for root in (tmp_path / "data", tmp_path / "copy"):
        store = open_store(root)
        found = {path.name: path.stat().st_ino for path in (root / LINKS).iterdir()}
        assert found == {link_name(name): (root / name).stat().st_ino for name in names}
        store.close()


def test_a_link_goes_with_the_last_snapshot_that_holds_its_file(tmp_path: Path) -> None:
    """Retired and still held: it stays; let go: it is removed, and the others are not."""
    flushed(tmp_path / "data")
    store = open_store(tmp_path / "data")
    links = Links(store.disk, store.root)
    files = list(store.snapshot().files)
    path, kept = files[0].path, files[1].path
    store.close()
    del store
    gc.collect()
    links.retire(files[:1])
    assert links.clean() == 1
    assert path.exists()
    del files[0]
    assert links.clean() == 0
    assert not path.exists()
    assert kept.exists()


class NoLinks(Disk):
    """A file system without hard links."""

    def link(self, source: Path, target: Path) -> None:
        """Refused."""
        raise OSError(errno.EOPNOTSUPP, "no links here", str(source))


def test_without_hard_links_the_files_themselves_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is said once, and everything else goes on."""
    names = flushed(tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / LINKS)
    store = open_store(tmp_path / "data", NoLinks(fsync=False))
    assert [file.path for file in store.snapshot().files] == [tmp_path / "data" / name for name in names]
    assert caplog.text.count("has no hard links") == 1
    store.close()
