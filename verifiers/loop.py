"""The asyncio loop on which verifiers wait: one thread a process, for all verifiers that have a `judge_async`.

Engines that verifiers share, and connections to remote judges, belong to one loop and outlive any single call, which comes from
whatever thread has something to judge. The thread is a daemon and starts with the first call.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def submit(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Starts the coroutine on the loop. Any thread but the loop's own may wait for the result."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="verifier-loop", daemon=True).start()
    return asyncio.run_coroutine_threadsafe(work, _loop)
