"""The states that a crash or a power cut may leave of what was recorded (`tests/support/recording.py`).

Bytes are durable by the sync of their file, names by the sync of their directory. What is not, may be kept or not, in
any combination: names apart from bytes, later ones without earlier ones, and of a write a prefix, zeros or garbage from
a sector boundary on. The catalog is what its last transaction left; it may also be gone or one transaction behind.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import xxhash

from tests.support.recording import Change, Data, Mark, Op, Size, Snapshot, Sync, Tree

__all__ = ["Frontier", "State", "frontiers", "materialise", "random_state", "systematic_states"]

SECTOR = 512
_MANY = 256
"""So many states that were drawn of a frontier, and their names, are remembered: where few are pending, all of them."""

_UNTOUCHED = 10**9
"""The time of files that nobody has written to since they were made, in nanoseconds since the epoch."""

Made = tuple[int, bytes]
"""A file that was made: its inode, and what it holds."""

_made: dict[str, dict[str, Made]] = {}
"""By directory, what was made there last."""

Pick = tuple[str, int]
"""How a write is kept: ("whole" | "none" | "prefix" | "zeros" | "garbage", bytes that are right)."""


@dataclass
class Frontier:
    """What is durable after so many operations, and what is pending in their order."""

    at: int
    durable: Tree
    changes: list[Change] = field(default_factory=list)
    data: list[Data | Size] = field(default_factory=list)
    catalog_before: bytes | None = None
    mark: Mark = Mark(0, 0)
    shapes: dict[frozenset[int], Shape] = field(default_factory=dict)
    """The names by the changes that are kept, where they have been asked for."""
    drawn: dict[object, State] = field(default_factory=dict)
    """The states by what is kept, where they have been drawn."""

    def copy(self, at: int) -> Frontier:
        """One that can be changed."""
        return Frontier(at, self.durable.copy(), list(self.changes), list(self.data), self.catalog_before, self.mark)


@dataclass(frozen=True)
class State:
    """One possible content of the disk: paths (of directories None) below the parent of the data directory.

    `links` are further names of files that stand in `entries`.
    """

    entries: dict[str, bytes | None]
    links: dict[str, str]
    at: int
    mark: Mark
    how: str

    def key(self) -> bytes:
        """Equal for states that must pass the same checks."""
        return self._key

    @cached_property
    def _key(self) -> bytes:
        return self._digest(f"{self.mark}", sorted(self.entries))

    def part(self, folder: str) -> bytes:
        """Equal for states that are equal, to the byte, below a folder of the data directory."""
        return self._digest("", sorted(path for path in self.entries if f"/{folder}/" in path))

    def _digest(self, begin: str, paths: list[str]) -> bytes:
        entries = self.entries
        pieces = [begin.encode(), *(_digest_of(path, entries[path]) for path in paths)]
        pieces.extend(f"{path} {first} ".encode() for path, first in sorted(self.links.items()))
        return xxhash.xxh3_128_digest(b"".join(pieces))


@lru_cache(8_192)
def _digest_of(path: str, data: bytes | None) -> bytes:
    """Of one entry: few states have other bytes than those before them in more than a few files."""
    return xxhash.xxh3_128_digest(f"{path} {-1 if data is None else len(data)} ".encode() + (data or b""))


@dataclass(frozen=True)
class Shape:
    """The names of a state: its entries, the nodes of its files, and further names of files."""

    entries: dict[str, bytes | None]
    files: dict[int, str]
    links: dict[str, str]
    catalog: str | None
    """Where it lies, if its directory is there."""


def frontiers(base: Tree, ops: Sequence[Op], mark: Mark) -> list[Frontier]:
    """What is durable and pending before the first operation and after each."""
    found = [Frontier(0, base.copy(), mark=mark, catalog_before=base.catalog)]
    for at, op in enumerate(ops, 1):
        frontier = found[-1].copy(at)
        match op:
            case Mark():
                frontier.mark = op
            case Snapshot():
                frontier.catalog_before, frontier.durable.catalog = frontier.durable.catalog, op.data
            case Change():
                frontier.changes.append(op)
                if op.makes_directory:
                    assert op.node is not None
                    frontier.durable.directories[op.node] = {}
            case Data() | Size():
                frontier.durable.files.setdefault(op.node, b"")
                frontier.data.append(op)
            case Sync():
                _sync(frontier, op.node)
        found.append(frontier)
    return [frontier for frontier in found if not _is_within(frontier)]


def _is_within(frontier: Frontier) -> bool:
    """Whether half of a change that is one step has been seen."""
    seen = {id(change) for change in frontier.changes}
    return any(id(need) not in seen for change in frontier.changes[-1:] for need in change.needs)


def _sync(frontier: Frontier, node: int) -> None:
    if node in frontier.durable.directories:
        kept = _with_needs([change for change in frontier.changes if change.directory == node])
        _keep(frontier.durable, [change for change in frontier.changes if id(change) in kept])
        frontier.changes = [change for change in frontier.changes if id(change) not in kept]
    if node in frontier.durable.files:
        mine = [piece for piece in frontier.data if piece.node == node]
        frontier.durable.files[node] = _content(frontier.durable.files[node], [(p, ("whole", 0)) for p in mine], 0)
        frontier.data = [piece for piece in frontier.data if piece.node != node]


def _with_needs(chosen: list[Change]) -> set[int]:
    """The changes and all that they need, by their `id`."""
    found: set[int] = set()
    waiting = list(chosen)
    while waiting:
        change = waiting.pop()
        if id(change) not in found:
            found.add(id(change))
            waiting.extend(change.needs)
    return found


def _keep(tree: Tree, changes: list[Change]) -> None:
    for change in changes:
        names = tree.directories[change.directory]
        if change.node is None:
            names.pop(change.name, None)
        else:
            names[change.name] = change.node


def _content(before: bytes, pieces: list[tuple[Data | Size, Pick]], seed: int) -> bytes:
    content = bytearray(before)
    for piece, (how, right) in pieces:
        if how == "none":
            continue
        if isinstance(piece, Size):
            del content[piece.length :]
            content.extend(bytes(piece.length - len(content)))
            continue
        data = piece.data
        if how == "prefix":
            data = data[:right]
        elif how == "zeros":
            data = data[:right] + bytes(len(data) - right)
        elif how == "garbage":  # sectors are written whole or not at all
            right = min(max(-(-(piece.offset + right) // SECTOR) * SECTOR - piece.offset, 0), len(data))
            data = data[:right] + random.Random(seed).randbytes(len(data) - right)
        content.extend(bytes(max(piece.offset - len(content), 0)))
        content[piece.offset : piece.offset + len(data)] = data
    return bytes(content)


def _state(
    frontier: Frontier, changes: list[Change], picks: list[Pick], how: str, catalog: str = "now", seed: int = 0
) -> State:
    """The state in which these changes of names are kept, and of each pending write what its pick says."""
    shape = _shape(frontier, frozenset(_with_needs(changes)))
    pending: dict[int, list[tuple[Data | Size, Pick]]] = {}
    for piece, pick in zip(frontier.data, picks, strict=True):
        pending.setdefault(piece.node, []).append((piece, pick))
    entries = dict(shape.entries)
    for node, pieces in pending.items():
        if node in shape.files:
            entries[shape.files[node]] = _content(frontier.durable.files[node], pieces, seed)
    kept = {"now": frontier.durable.catalog, "behind": frontier.catalog_before, "lost": None}[catalog]
    if kept is not None and shape.catalog is not None:
        entries[shape.catalog] = kept
    return State(entries, shape.links, frontier.at, frontier.mark, f"{how}, catalog {catalog}")


def _shape(frontier: Frontier, chosen: frozenset[int]) -> Shape:
    """The names where these changes, by their `id`, are kept, and the bytes that are durable."""
    found = frontier.shapes.get(chosen)
    if found is not None:
        return found
    durable = frontier.durable
    tree = Tree({node: dict(names) for node, names in durable.directories.items()})
    _keep(tree, [change for change in frontier.changes if id(change) in chosen])
    entries: dict[str, bytes | None] = {}
    files: dict[int, str] = {}
    links: dict[str, str] = {}
    for path, node in _walk(tree, 0, ""):
        if node in tree.directories:
            entries[path] = None
        elif files.setdefault(node, path) == path:
            entries[path] = durable.files.get(node, b"")
        else:
            links[path] = files[node]
    internal = next((path for path in entries if path.endswith("/internal") and path.count("/") == 2), None)
    catalog = None if internal is None else f"{internal}/catalog.sqlite"
    shape = Shape(entries, files, links, catalog)
    if len(frontier.shapes) < _MANY:
        frontier.shapes[chosen] = shape
    return shape


def _walk(tree: Tree, directory: int, prefix: str) -> Iterator[tuple[str, int]]:
    for name, node in sorted(tree.directories[directory].items()):
        yield f"{prefix}/{name}", node
        if node in tree.directories:
            yield from _walk(tree, node, f"{prefix}/{name}")


def systematic_states(frontier: Frontier) -> Iterator[State]:
    """All of it kept; nothing; all but one change or write; one alone; each write torn in several ways."""
    every, none = [("whole", 0)] * len(frontier.data), [("none", 0)] * len(frontier.data)
    yield _state(frontier, frontier.changes, every, "killed")
    yield _state(frontier, [], none, "cut")
    yield _state(frontier, frontier.changes, none, "names without bytes")
    yield _state(frontier, [], every, "bytes without names")
    for change in frontier.changes:
        others = [other for other in frontier.changes if other is not change]
        yield _state(frontier, others, every, f"without {change.name}")
        yield _state(frontier, [change], every, f"only {change.name}")
        yield _state(frontier, [change], none, f"only {change.name}, no bytes")
    for at, piece in enumerate(frontier.data):
        for pick in _torn(piece):
            for rest, changes in ((every, frontier.changes), (none, [])):
                yield _state(frontier, changes, [*rest[:at], pick, *rest[at + 1 :]], f"write {at} {pick}", seed=at)
    yield _state(frontier, frontier.changes, every, "killed", "lost")
    yield _state(frontier, frontier.changes, every, "killed", "behind")


def _torn(piece: Data | Size) -> list[Pick]:
    if isinstance(piece, Size):
        return [("whole", 0), ("none", 0)]
    size = len(piece.data)
    return [
        ("whole", 0), ("none", 0), ("prefix", 1), ("prefix", size // 2), ("prefix", size - 1),
        ("zeros", 0), ("zeros", size // 2), ("garbage", 0), ("garbage", size // 2),
    ]  # fmt: skip


def random_state(frontier: Frontier, chance: random.Random) -> State:
    """Any subset, with writes torn anywhere."""
    keep = chance.choice((0.2, 0.5, 0.8))
    changes = [change for change in frontier.changes if chance.random() < keep]
    picks: list[Pick] = []
    for piece in frontier.data:
        how = chance.choice(("whole", "whole", "none", "prefix", "zeros", "garbage"))
        picks.append((how, chance.randrange(len(piece.data) + 1) if isinstance(piece, Data) else 0))
    catalog = chance.choices(("now", "behind", "lost"), (18, 1, 1))[0]
    seed = chance.getrandbits(32)
    kept = (frozenset(map(id, changes)), tuple(picks), catalog, seed if any("garbage" in pick for pick in picks) else 0)
    state = frontier.drawn.get(kept)
    if state is None:
        state = _state(frontier, changes, picks, f"random {picks}", catalog, seed)
        if len(frontier.drawn) < _MANY:
            frontier.drawn[kept] = state
    return state


def materialise(state: State, parent: Path) -> None:
    """Make `parent` a directory that holds the state.

    A file that was made for the state before, and that nobody has written to since, is left where it lies; every other
    one is a new one, because somebody may map the old.
    """
    base = str(parent)
    os.makedirs(base, exist_ok=True)
    before = _made.pop(base, {})
    _made.clear()  # of directories that are gone
    made: dict[str, Made] = {}
    there = _emptied(base, "", state, before, made)
    for path, data in state.entries.items():
        if path in there:
            continue
        if data is None:
            os.mkdir(base + path)
            continue
        handle = os.open(base + path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            assert os.write(handle, data) == len(data)
            if "/inbox/" not in path:  # of those the times are told
                os.utime(handle, ns=(_UNTOUCHED, _UNTOUCHED))
                made[path] = (os.fstat(handle).st_ino, data)
        finally:
            os.close(handle)
    for path, first in state.links.items():
        os.link(base + first, base + path)
    _made[base] = made


def _emptied(base: str, folder: str, state: State, before: Mapping[str, Made], made: dict[str, Made]) -> set[str]:
    """Remove all that is not to be there; the folders and files that are left, the files in `made` too."""
    left = set()
    with os.scandir(base + folder) as found:
        entries = [(f"{folder}/{entry.name}", entry) for entry in found]
    for path, entry in entries:
        if not entry.is_dir(follow_symlinks=False):
            known = before.get(path)
            if known is not None and known[1] == state.entries.get(path) and _is_untouched(entry, known[0]):
                made[path] = known
                left.add(path)
            else:
                os.unlink(base + path)
            continue
        left |= _emptied(base, path, state, before, made)
        if state.entries.get(path, b"") is None:
            left.add(path)
        else:
            os.rmdir(base + path)
    return left


def _is_untouched(entry: os.DirEntry[str], inode: int) -> bool:
    """Whether it is the file that was made: whoever writes to it, or cuts it, sets its time."""
    found = entry.stat(follow_symlinks=False)
    return found.st_ino == inode and found.st_mtime_ns == _UNTOUCHED
