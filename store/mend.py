"""Parquet files that are missing or damaged, made again from the notification log.

The catalog says how many records a file holds, the sound files which seqs are lost, and the log has the records of
these; its bytes are proven by the journal. What is made is a new file, because names are never used twice. It takes the
place of the damaged one, which goes into quarantine, by an intent in the catalog as that of a compaction: a start
counts a new file that is in place and forgets one that is not, so that it may end anywhere and be run again.

A file that only lost its name is put back by its private link (`store.links`), whatever the log still has.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from store.catalog import Catalog, FileRow, Swap
from store.compaction import COMPACTION
from store.errors import CorruptionError
from store.files import NO_LINKS, Disk, overlapped, remove_directory
from store.gathering import Group, Lost, gather, joined
from store.links import LINKS, link_name
from store.log import examined
from store.parquet import day_directory
from store.remake import REMAKE
from store.rot import quarantined
from store.salvage import Salvage
from store.segments import LogSegment
from store.snapshot import SealedFile

__all__ = ["file_damage", "kept", "mend_files", "was"]

Prove = Callable[[Sequence[SealedFile], LogSegment], bool]
"""Whether a damaged segment can be made again, to the byte, from the records of these files."""

_ROUND_FILES = 64
"""New files that are made from one reading of the log, and exchanged together."""


def file_damage(path: Path, row: FileRow) -> str | None:
    """Why a Parquet file is not the one that the catalog says, or None."""
    _, why = examined(path, row.bytes, row.sum)
    if why is None and (size := path.stat().st_size) != row.bytes:
        return f"has {size} bytes"
    return why


@dataclass
class _Damage:
    """Damaged files of one day whose ranges of seqs overlap: one new file stands for all of them."""

    rows: list[FileRow]

    @property
    def seqs(self) -> tuple[int, int]:
        return min(row.min_seq for row in self.rows), max(row.max_seq for row in self.rows)

    @property
    def expected(self) -> int:
        return sum(row.rows for row in self.rows)

    @property
    def span(self) -> tuple[int, int]:
        """From the first to the last flush of the files, as their names say."""
        spans = [Path(row.name).stem.split(".")[0].split("-") for row in self.rows]
        return min(int(first) for first, _ in spans), max(int(last) for _, last in spans)

    @property
    def name(self) -> str:
        """The name of the new file: as that of a compacted one, and which time it is made again."""
        before = [Path(row.name).stem.partition(".mended")[1:] for row in self.rows]
        times = 1 + max((int(number or 1) for found, number in before if found), default=0)
        first, last = self.span
        again = "" if times == 1 else str(times)
        return f"{day_directory(self.rows[0].day)}/{first:020d}-{last:020d}.{self.expected}.mended{again}.parquet"


def mend_files(
    disk: Disk,
    root: Path,
    catalog: Catalog,
    files: Sequence[FileRow],
    log: Sequence[LogSegment],
    salvage: Salvage,
    prove: Prove,
    tell: Callable[[str], None],
) -> list[str]:
    """Make whole what of these files is not, as far as the notification log has it; what cannot be, in words.

    Where a segment is damaged too, its whole lines do (`salvage`), if with the files that would then be there it can be
    made again to the byte (`prove`). `tell` is told each thing that was done.
    """
    broken: list[tuple[FileRow, str]] = []
    for row in files:
        why = file_damage(root / row.name, row)
        if why is not None and not _put_back(disk, root, row, why, tell):
            broken.append((row, why))
    if not broken:
        return []
    wrong = {row.name: why for row, why in broken}
    damages = _damages([row for row, _ in broken])
    lost = Lost(min(row.min_seq for row, _ in broken), max(row.max_seq for row, _ in broken))
    for row, _ in broken:
        lost.add(row.min_seq, row.max_seq)
    for row in files:
        if row.name not in wrong:
            lost.discard(_seqs_of(root, row, lost.first, lost.last))
    hopeless: list[str] = []
    try:
        for number in range(0, len(damages), _ROUND_FILES):
            chosen = damages[number : number + _ROUND_FILES]
            made, lacking = _made(disk, root, chosen, lost, log, salvage)
            made, unproven = _proven(root, catalog.read()[1], made, prove)
            hopeless += [f"{_names(damage, wrong)}: {reason}" for damage, reason in [*lacking, *unproven]]
            if made:
                _exchange(disk, root, catalog, [each.swap for each in made], wrong, tell)
    finally:
        remove_directory(disk, root / REMAKE)
    return hopeless


def _names(damage: _Damage, wrong: dict[str, str]) -> str:
    return ", ".join(f"{row.name} {wrong[row.name]}" for row in damage.rows)


def _put_back(disk: Disk, root: Path, row: FileRow, why: str, tell: Callable[[str], None]) -> bool:
    """Give a file its name again, where its private link still has its bytes."""
    path, link = root / row.name, root / LINKS / link_name(row.name)
    if file_damage(link, row) is not None:
        return False
    disk.make_directory(path.parent)
    staged = root / LINKS / f".{link.name}.mend"
    try:
        if staged.exists():
            disk.remove(staged)
        disk.link(link, staged)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return False
    where = quarantined(disk, root, path, link_name(row.name)) if path.exists() else None
    disk.rename(staged, path)
    disk.sync_directory(path.parent)
    tell(f"{row.name} {was(why)}: put back from {LINKS}, to the byte{kept(where)}")
    return True


def _seqs_of(root: Path, row: FileRow, first: int, last: int) -> npt.NDArray[np.int64]:
    """The seqs of a sound file that lie in a range."""
    if row.max_seq < first or row.min_seq > last:
        return np.zeros(0, dtype=np.int64)
    try:
        seqs = pq.read_table(root / row.name, columns=["seq"], partitioning=None).column("seq").to_numpy()
    except (OSError, pa.ArrowException) as error:
        raise CorruptionError(f"{root / row.name} has the right checksum and cannot be read: {error}") from error
    return np.asarray(seqs[(seqs >= first) & (seqs <= last)])


def _damages(rows: Sequence[FileRow]) -> list[_Damage]:
    """In order of their seqs."""
    found: list[_Damage] = []
    for row in sorted(rows, key=lambda row: (row.day, row.min_seq)):
        if found and found[-1].rows[0].day == row.day and found[-1].seqs[1] >= row.min_seq:
            found[-1].rows.append(row)
        else:
            found.append(_Damage([row]))
    return sorted(found, key=lambda damage: damage.seqs)


@dataclass(frozen=True)
class _Made:
    """A new file, staged. `doubtful` are the damaged segments that some of its records come from."""

    damage: _Damage
    swap: Swap
    doubtful: list[LogSegment]


def _made(
    disk: Disk, root: Path, damages: Sequence[_Damage], lost: Lost, log: Sequence[LogSegment], salvage: Salvage
) -> tuple[list[_Made], list[tuple[_Damage, str]]]:
    """New files for these, staged and synced; and what the log cannot make whole, with the reason."""
    remove_directory(disk, root / REMAKE)
    disk.make_directory(root / REMAKE)
    groups = [Group(damage.rows[0].day, *damage.seqs, damage.span) for damage in damages]
    by_day: dict[int, list[Group]] = {}
    for group in groups:
        by_day.setdefault(group.day, []).append(group)
    first, last = min(group.first for group in groups), max(group.last for group in groups)
    gather(root, lambda day: by_day.get(day, []), lost, log, first, last, salvage)
    made: list[_Made] = []
    hopeless: list[tuple[_Damage, str]] = []
    for number, (damage, group) in enumerate(zip(damages, groups, strict=True)):
        if group.found != damage.expected:
            why = f"of its {damage.expected} records of seqs {group.first} to {group.last} the notification log has "
            hopeless.append((damage, f"{why}{group.found}"))
            continue
        staged = root / REMAKE / f"{number}.parquet"
        row = joined(disk, root, group, staged, damage.name)
        difference = _difference(row, damage.rows)
        if difference is not None:
            why = f"the records of the notification log are not those that were in it: {difference}"
            hopeless.append((damage, why))
            continue
        gone = [row.name for row in damage.rows]
        swap = Swap(day_directory(group.day), str(staged.relative_to(root)), gone, row)
        made.append(_Made(damage, swap, group.doubtful))
    overlapped(disk.sync_file, [root / each.swap.staged for each in made])
    return made, hopeless


def _proven(
    root: Path, files: Sequence[FileRow], made: list[_Made], prove: Prove
) -> tuple[list[_Made], list[tuple[_Damage, str]]]:
    """Those of the new files that need no further proof, or have it; and those that do not."""
    unproven: list[tuple[_Damage, str]] = []
    while any(each.doubtful for each in made):
        gone = {name for each in made for name in each.swap.gone}
        there = [SealedFile(root / row.name, *msgspec.structs.astuple(row)) for row in files if row.name not in gone]
        there += [SealedFile(root / each.swap.staged, *msgspec.structs.astuple(each.swap.file)) for each in made]
        segments = {segment.path: segment for each in made for segment in each.doubtful}
        failed = {path for path, segment in segments.items() if not prove(there, segment)}
        if not failed:
            break
        for each in [each for each in made if failed & {segment.path for segment in each.doubtful}]:
            made.remove(each)
            unproven.append((each.damage, f"what is left of its records in {', '.join(sorted(failed))} is damaged too"))
    return made, unproven


def _difference(made: FileRow, rows: Sequence[FileRow]) -> str | None:
    """What of a new file is not as the catalog says of those that it stands for."""
    meant = {
        "rows": sum(row.rows for row in rows),
        "min_seq": min(row.min_seq for row in rows),
        "max_seq": max(row.max_seq for row in rows),
        "min_time": min(row.min_time for row in rows),
        "max_time": max(row.max_time for row in rows),
    }
    found = [
        f"{name} is {getattr(made, name)}, the catalog says {value}"
        for name, value in meant.items()
        if getattr(made, name) != value
    ]
    return found[0] if found else None


def _exchange(
    disk: Disk,
    root: Path,
    catalog: Catalog,
    swaps: list[Swap],
    wrong: dict[str, str],
    tell: Callable[[str], None],
) -> None:
    """Put new files in the place of damaged ones; what is cut off here is finished or forgotten by the next start.

    The damaged file leaves its partition before the new one comes, so that nobody sees a record twice.
    """
    disk.make_directory(root / COMPACTION)
    disk.sync_directory(root / REMAKE)
    catalog.intend_swaps(swaps)
    moved: dict[str, str] = {}
    for name in itertools.chain.from_iterable(swap.gone for swap in swaps):
        if (root / name).exists():
            moved[name] = quarantined(disk, root, root / name, link_name(name))
    disk.make_directories([root / swap.directory for swap in swaps])
    for swap in swaps:
        disk.rename(root / swap.staged, root / swap.file.name)
    overlapped(disk.sync_directory, sorted({root / swap.directory for swap in swaps}))
    catalog.swapped(swaps)
    for swap in swaps:
        for name in swap.gone:
            tell(
                f"{name} {was(wrong[name])}: its records are made again from the notification log, in "
                f"{swap.file.name} ({swap.file.rows} records of seqs {swap.file.min_seq} to {swap.file.max_seq})"
                f"{kept(moved.get(name))}"
            )


def was(why: str) -> str:
    """What is wrong with a file, told when it is right again."""
    for now, then in (("is ", "was "), ("has ", "had "), ("cannot ", "could not ")):
        if why.startswith(now):
            return then + why.removeprefix(now)
    return why


def kept(where: str | None) -> str:
    """Where the damaged file went, if there was one."""
    return "" if where is None else f"; what was there is in {where}"
