"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.forwarding import close_shippers

# A busy machine is slow, which is no fault of the code.
settings.register_profile("oncelake", deadline=None)
settings.load_profile("oncelake")


_LONGEST = ("test_kill.py", "test_forward_kill.py", "test_power_cut.py", "test_self_check.py", "test_disk_model.py")
"""These begin first, so that at the end no worker is left alone with one of them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, the others as they were found."""
    order = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(autouse=True)
def _shippers() -> Iterator[None]:
    """Close what the test connected."""
    yield
    close_shippers()
