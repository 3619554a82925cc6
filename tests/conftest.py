"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.forwarding import close_shippers

# A busy machine is slow, which is no fault of the code.
settings.register_profile("oncelake", deadline=None)
settings.load_profile("oncelake")


@pytest.fixture(autouse=True)
def _shippers() -> Iterator[None]:
    """Close what the test connected."""
    yield
    close_shippers()
