"""`oncelake token`: a new token, and the table for the configuration that knows it by its hash."""

from __future__ import annotations

import argparse
import sys

import msgspec

from api.tokens import Token, hash_of, new_token
from store.errors import ConfigError

__all__ = ["token"]


def token(options: argparse.Namespace) -> int:
    """Print a token, an empty line and its `[[tokens]]` table; what to do with them goes to standard error."""
    secret = new_token()
    wanted = {"name": options.name, "role": options.role, "hash": hash_of(secret), "sources": options.source}
    try:
        table = msgspec.convert(wanted, Token)
    except msgspec.ValidationError as error:
        raise ConfigError(f"this cannot be a token: {error}") from None
    table.check()
    # TOML takes every escape that JSON writes, and its arrays look alike; control characters were ruled out.
    values = [(name, value) for name in ("name", "role", "hash", "sources") if (value := getattr(table, name))]
    print(
        secret,
        "",
        "[[tokens]]",
        *(f"{name} = {msgspec.json.encode(value).decode()}" for name, value in values),
        sep="\n",
    )
    print(
        "\nThe first line is the token. It is shown this once, and kept nowhere: give it to its user. "
        "Paste the table into config.toml, and start the service again.",
        file=sys.stderr,
    )
    return 0
