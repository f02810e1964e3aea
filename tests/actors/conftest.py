"""The hub that the tests of actors share, one for each test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import DEADLINE_S, Place

from safeladder.protocol.hub import HubOptions
from safeladder.protocol.hub_shell import Hub
from safeladder.protocol.transport import Link


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    options = HubOptions(durability="memory", beat_s=0.2, silence_s=1.0, max_attempts=2)
    hub = Hub(f"ipc://{tmp_path}/hub", options, tmp_path / "journal")
    stop = threading.Event()
    thread = threading.Thread(target=hub.serve, args=(stop,))
    thread.start()
    client = Link(hub.endpoint, "client/0")
    client.start(DEADLINE_S)
    yield Place(hub.endpoint, client, tmp_path)
    client.close()
    stop.set()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
