"""Hypothesis asks of a test what it finds, never how fast it was: the machine may be busy. No test logs by what another has set up.
The tests of whole runs go first: they take longest, and beside them there is always something left for another worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

settings.register_profile("safeladder", deadline=None)
settings.load_profile("safeladder")


@pytest.fixture(autouse=True)
def logging_as_found() -> Iterator[None]:
    """A command that ran in this process has sent its logs where it was told: to a stream of its own test, closed by now."""
    yield
    structlog.reset_defaults()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)
