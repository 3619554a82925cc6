"""Bearer tokens: made from 256 random bits, kept as hashes, found in constant time.

A token is `olk_` and 43 characters of base64url. Only its SHA-256 is kept. A slow hash would protect words that people
choose; nobody can go through 2^256 random tokens, and a slow hash on every request would be a way to stall the service.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from store.errors import ConfigError

__all__ = ["Grant", "Role", "Token", "Tokens", "hash_of", "new_token"]

Role = Literal["ingest", "read", "admin"]
Source = Annotated[str, Meta(min_length=1, max_length=256)]

_PREFIX = "olk_"
_RANDOM_BYTES = 32
_MAX_CHARS = 256
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


class Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[tokens]]` table. With `sources`, an ingest token brings records of these sourceIds only."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    role: Role
    hash: str
    sources: tuple[Source, ...] = ()

    def check(self) -> None:
        """Raise `ConfigError` for what the types do not say."""
        if self.hash.startswith(_PREFIX):
            raise ConfigError("hash holds the token itself; it takes its hash, as `oncelake token` prints it")
        if _HASH.fullmatch(self.hash) is None:
            raise ConfigError("hash is sha256: and 64 hexadecimal digits, as `oncelake token` prints it")
        if self.sources and self.role != "ingest":
            raise ConfigError(f"sources bind a token that only ingests; this one has the role {self.role}")
        for text in (self.name, *self.sources):
            if _CONTROL.search(text):
                raise ConfigError(f"{text!r} holds a control character")


@dataclass(frozen=True)
class Grant:
    """What the bearer of a token may do. `sources` is None where it may bring records of any source."""

    name: str
    role: Role
    sources: frozenset[str] | None = None


class Tokens:
    """The tokens of a configuration."""

    def __init__(self, tokens: Sequence[Token] = ()) -> None:
        self._grants = [
            (token.hash.encode("ascii"), Grant(token.name, token.role, frozenset(token.sources) or None))
            for token in tokens
        ]

    def __bool__(self) -> bool:
        return bool(self._grants)

    def find(self, token: str) -> Grant | None:
        """The grant of a token; each hash is compared in full, whether one was found before or not."""
        if len(token) > _MAX_CHARS:
            return None
        wanted = hash_of(token).encode("ascii")
        found = None
        for known, grant in self._grants:
            if hmac.compare_digest(known, wanted):
                found = grant
        return found


def new_token() -> str:
    """A token that nobody had before."""
    return _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def hash_of(token: str) -> str:
    """What is kept of a token."""
    return "sha256:" + hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
