"""Headers of a request as they stand in its scope: names in lower case, values as bytes."""

from __future__ import annotations

from typing import Any

__all__ = ["header", "headers"]


def headers(scope: Any, name: bytes) -> list[str]:
    """All values of a header, in their order."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def header(scope: Any, name: bytes) -> str | None:
    """The first value of a header; None where there is none."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None
