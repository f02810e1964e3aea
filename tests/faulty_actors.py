"""Actors and a verifier that go wrong when a file says so, as a user's own might. The file holds the faults of now, as words.

Named in runs as `faulty_actors:Class`; the file's path is in the environment variable FAULTS.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from safeladder.actors.actor import Actor, Delivery, Keep, Output
from safeladder.actors.generator import Generator
from safeladder.actors.learner import Learner
from safeladder.actors.places import Place
from safeladder.protocol.messages import Verdict
from safeladder.verifiers.contract import Item, Verifier

POLL_S = 0.05
LEAK_BYTES = 4 * 2**20  # each POLL_S: 80 MiB a second
SLOW_S = 6.0


def has(fault: str) -> bool:
    return fault in Path(os.environ["FAULTS"]).read_text().split()


class HangingGenerator(Generator):
    """`hang`: takes works and does nothing with them."""

    async def handle(self, delivery: Delivery) -> Any:
        while has("hang"):
            await asyncio.sleep(POLL_S)
        return await super().handle(delivery)


class SlowLearner(Learner):
    """`slow`: each step takes some seconds."""

    async def _train(self, places: list[Place]) -> None:
        end = time.monotonic() + SLOW_S
        while has("slow") and time.monotonic() < end:
            await asyncio.sleep(POLL_S)
        await super()._train(places)


class Careless(Actor):
    """Passes groups on. `keep`: holds them back until it is over, and then answers them, lease or not. `leak`: replica 1 keeps memory."""

    async def start(self) -> None:
        self._kept: list[bytearray] = []

    async def handle(self, delivery: Delivery) -> Any:
        if not has("keep"):
            return delivery.payload
        while has("keep"):
            self.worked()
            await asyncio.sleep(POLL_S)
        output = delivery.pack(Output(delivery.payload, delivery.arrays), delivery.work.stop + 1)
        self.link.done(delivery.lease, [output])
        return Keep

    async def run(self) -> None:
        while not self.stopping.is_set():
            if has("leak") and self.context.name.endswith("/1"):
                self._kept.append(bytearray(os.urandom(1024) * (LEAK_BYTES // 1024)))
            await asyncio.sleep(POLL_S)


class Judge(Verifier):
    """Scores by length; `constant`: 0.5 for every answer to a task labelled `safety`."""

    name, version, principle = "judge", "1", "value"

    def judge_one(self, item: Item) -> Verdict:
        if has("constant") and item.record.label == "safety":
            return self.ok(item, 0.5)
        return self.ok(item, (len(item.text) % 17) / 17)
