"""One served tiny model for all tests of the gateway: a hub, a generator, verifiers, and two gateways in one run."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from gateways import Serving, serving


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("gateway"), model=os.environ.get("SAFELADDER_TEST_MODEL", "tiny")) as up:
        yield up
