"""What a data directory is: its format version, its id and the seed of its hashes, in `oncelake.json`."""

from __future__ import annotations

import secrets
from pathlib import Path

import msgspec
import xxhash

from store.errors import CorruptionError, StoreVersionError
from store.files import Disk
from store.limits import FORMAT_VERSION

__all__ = ["IDENTITY_FILE", "Identity", "load_identity", "save_identity"]

IDENTITY_FILE = "oncelake.json"
_WITHOUT_SUM = 1
"""The newest format without a sum."""


class Identity(msgspec.Struct, frozen=True, rename="camel"):
    """The contents of `oncelake.json`. `hash_bits` below 64 weakens the hashes on purpose (tests of collisions).

    `sum` is xxh3-64 (hex) of the others, from format 2 on: with another seed every stored recordId would look new.
    """

    format: int
    store_id: str
    seed: str
    hash_bits: int = 64
    sum: str = ""

    def right_sum(self) -> str:
        """What `sum` must be."""
        return xxhash.xxh3_64_hexdigest(f"{self.format} {self.store_id} {self.seed} {self.hash_bits}".encode())


def load_identity(root: Path, disk: Disk | None = None) -> Identity | None:
    """Read the identity; a new one is made where there is none and `disk` is given, else None is returned."""
    path = root / IDENTITY_FILE
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        if disk is None:
            return None
        if any((root / name).exists() for name in ("internal", "records", "outbox")):
            raise CorruptionError(
                f"{path} is missing, and {root} holds data: restore {IDENTITY_FILE} from a backup (it holds the seed "
                "of the index), or choose another --data directory"
            ) from None
        made = Identity(FORMAT_VERSION, secrets.token_hex(16), secrets.token_hex(16))
        save_identity(disk, root, made)
        return made
    try:
        version = msgspec.json.decode(raw, type=dict)["format"]
        if version > FORMAT_VERSION:
            raise StoreVersionError(
                f"{path} says format {version}; this oncelake knows formats up to {FORMAT_VERSION}: install a newer "
                "one, or restore the file from a backup if it never had one"
            )
        identity = msgspec.json.decode(raw, type=Identity)
        has_sum = identity.format > _WITHOUT_SUM or identity.sum
        if identity.format < 1 or (has_sum and identity.sum != identity.right_sum()):
            raise ValueError("its checksum is not that of its contents")
        return identity
    except (ValueError, msgspec.MsgspecError, KeyError, TypeError) as error:
        raise CorruptionError(f"{path} is damaged ({error}): restore it from a backup") from error


def save_identity(disk: Disk, root: Path, identity: Identity) -> None:
    """Put an identity in the place of the one before."""
    summed = msgspec.structs.replace(identity, sum=identity.right_sum())
    data = msgspec.json.format(msgspec.json.encode(summed), indent=2)
    disk.replace(root / IDENTITY_FILE, data + b"\n")
