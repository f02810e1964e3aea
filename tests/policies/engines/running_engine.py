"""One engine for all tests of a module: it lives in an event loop of its own thread, and each test runs its check there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from checks import DEADLINE_S, LONG, Case
from transformers import LlamaConfig, LlamaForCausalLM

from safeladder.policies import model as models
from safeladder.policies.engines.registry import create
from safeladder.protocol.messages import Sampling

START_S = 600


def small_model(folder: Path) -> Path:
    """The built-in tiny model with heads of 32 features instead of 16, which vLLM's attention on a CPU does not have."""
    tiny = models.resolve("tiny")
    config = LlamaConfig.from_pretrained(tiny, head_dim=32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        LlamaForCausalLM(config).save_pretrained(folder)
    models.load_tokenizer(tiny).save_pretrained(folder)
    return folder


class RunningEngine:
    def __init__(self, case: Case, loop: asyncio.AbstractEventLoop) -> None:
        self.case, self._loop = case, loop

    def run(self, call: Coroutine[Any, Any, Any], deadline_s: float = DEADLINE_S + 30) -> Any:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result(deadline_s)


@contextmanager
def running_engine(
    name: str, folder: Path, place: Path, long: Sampling = LONG, **options: Any
) -> Iterator[RunningEngine]:
    """The engine `name` over the model in `folder`, as version 3, with room for four samples; stopped at the end."""
    engine = create(name, folder, version=3, max_sequences=4, max_tokens=8192, options=options)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    running = RunningEngine(Case(engine, folder, place, long), loop)
    try:
        running.run(engine.start(), START_S)
        yield running
    finally:
        running.run(engine.stop(), START_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(DEADLINE_S)
        loop.close()
