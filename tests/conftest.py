"""What every test leaves behind is cleared away."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.forwarding import close_shippers


@pytest.fixture(autouse=True)
def _shippers() -> Iterator[None]:
    """Close what the test connected."""
    yield
    close_shippers()
