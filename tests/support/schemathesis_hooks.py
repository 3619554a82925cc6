"""How schemathesis writes the bodies that it does not know."""

from __future__ import annotations

import json
from typing import Any

import schemathesis

__all__ = ["lines"]


@schemathesis.serializer("application/x-ndjson", "application/ndjson", "application/jsonl")
def lines(ctx: Any, value: Any) -> bytes:
    """Texts as they are, everything else a line."""
    return value.encode() if isinstance(value, str) else json.dumps(value).encode() + b"\n"
