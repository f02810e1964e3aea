"""One served tiny model for all tests of the gateway: a hub, a generator, verifiers, and two gateways in one run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gateways import Serving, serving


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("gateway")) as up:
        yield up


@pytest.fixture(scope="session")
def folder() -> Path:
    """The folder of the tiny model."""
    from safeladder.policies import model

    return model.resolve("tiny")
