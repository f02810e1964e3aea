"""Feeder: reads task records and admits them as the staleness policy allows.

Inbox: nothing but the topic `policy`. Outbox: groups without completions, each with the route of its family. What blocks it is
the policy: it admits while `StalenessPolicy.capacity` is above zero, and the learner's next step, or a group that it drops, makes
room. If the learner dies, nothing is admitted beyond that until its successor has published. If the hub dies, the submission
is repeated until its successor has acknowledged it. If this process dies, its successor goes on at the position that the hub
last acknowledged; a repeated id is accepted once.

With `data.curriculum` the inbox has the topic `outcomes` too, and what is planned stands in RUN/feeder/curriculum.json before any of it is
admitted, so that a successor goes on with the same records. Outcomes that came since the last plan are told again by the learner.

Images go into the run's store before the record that names them by their hashes is submitted. With `data.serve` this process serves
the store to hosts that do not see it; while it is gone they wait for its successor, see `image_source.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from safeladder.actors.actor import Actor, ActorError
from safeladder.launch import tasks
from safeladder.launch.curriculum import Curriculum, outcome
from safeladder.launch.rundir import RunDirectory
from safeladder.launch.sections import Data
from safeladder.policies import staleness
from safeladder.protocol import codec, images
from safeladder.protocol import messages as m
from safeladder.protocol.chunk_shell import ChunkServer
from safeladder.protocol.image_store import SERVED, ImageStore
from safeladder.protocol.keys import load_server


class Feeder(Actor):
    """The source of the training lane. One replica: it owns the order of admission."""

    role = "feeder"

    @dataclass
    class Options:
        """`submit_s`: how long the hub may take to acknowledge a submission before this process gives up."""

        submit_s: float = 120.0

    async def start(self) -> None:
        data = self.config.data
        records = tasks.read(data.tasks, data.columns)
        unknown = {record.label for record in records} - set(self.config.recipe.families)
        if unknown and not data.families:
            raise ActorError(f"no recipe for the families {sorted(unknown)}; add them to recipe.families")
        self._store = ImageStore(RunDirectory(self.context.directory).images)
        self._server: ChunkServer | None = None
        if data.serve and any(images.has_images(record) for record in records):
            keys = load_server(Path(folder), self.context.name) if (folder := self.config.hub.keys) else None
            self._server = ChunkServer(data.serve, self._store.folder, keys, SERVED, "the server of images")
        self._draw: tasks.Draw | PlannedDraw
        if data.curriculum is None:
            self._draw = tasks.Draw(records, self.config.run.seed, data.families, data.shuffle, data.epochs)
        else:
            file = RunDirectory(self.context.directory).curriculum
            self._draw = PlannedDraw(file, records, self.config.run.seed, data)
            self.noticed("outcomes", self.link.state.get("outcomes", {}))
        self._staleness = staleness.create(self.config.staleness, self.config.learner.batch)
        self._policy: Mapping[str, Any] = self.link.state.get("policy", {})
        self._news = asyncio.Event()
        self._news.set()
        self._cursor: int | None = None

    def noticed(self, topic: str, value: Mapping[str, Any]) -> None:
        if topic == "policy" and hasattr(self, "_news"):
            self._policy = value
            self._news.set()
        if topic == "outcomes" and isinstance(getattr(self, "_draw", None), PlannedDraw):
            self._draw.observe(value.get("groups", []))

    async def run(self) -> None:
        if self._server:
            place = {"serve": self._server.endpoint, "serve_key": self._server.public_key}
            await asyncio.wrap_future(self.link.publish("images", place))
            self.log.info("images.served", endpoint=self._server.endpoint)
        stop = asyncio.create_task(self.stopping.wait())
        ended = False
        while not stop.done():
            news = asyncio.create_task(self._news.wait())
            await asyncio.wait({news, stop}, return_when=asyncio.FIRST_COMPLETED)
            news.cancel()
            self._news.clear()
            while not stop.done() and not ended and self._policy and (count := self._capacity()) > 0:
                ended = await self._admit(min(count, 16))
        stop.cancel()

    async def stop(self) -> None:
        if self._server:
            await asyncio.to_thread(self._server.close)

    def _capacity(self) -> int:
        if self._cursor is None:  # the hub's memory of us, or the checkpoint's where there is none
            known = self.link.state.get("feeder", {}).get("cursor", 0)
            self._cursor = max(known, self._policy["next_sequence"])
        accounted, step = int(self._policy["accounted"]), int(self._policy["step"])
        running = self._cursor - accounted
        trainable = (self.config.learner.steps - step) * self.config.learner.batch
        return min(trainable - running, self._staleness.capacity(running))

    async def _admit(self, count: int) -> bool:
        """Submits the next works and waits until they are in the journal. True at the end of the data."""
        assert self._cursor is not None
        if self._draw.total is not None:
            count = min(count, self._draw.total - self._cursor)
        numbers = range(self._cursor, self._cursor + count)
        parcels = await asyncio.to_thread(lambda: [self._parcel(number) for number in numbers])
        end = self._draw.total is not None and self._cursor + count >= self._draw.total
        if end:
            route = self.config.recipe.families[self._draw[0].label].route[-1:]
            total = self._cursor + count
            parcels.append(codec.pack(m.End(total), id=f"end-{total}", route=list(route), sequence=total))
        async with asyncio.timeout(self.options.submit_s):
            settled = await asyncio.wrap_future(self.link.submit(parcels))
            if settled["status"] == "refused":
                raise ActorError(f"the hub refused a submission: {settled['detail']}")
            self._cursor += count
            await asyncio.wrap_future(self.link.publish("feeder", {"cursor": self._cursor}))
        self.worked()
        self.log.info("groups.admitted", count=count, cursor=self._cursor, min_version=self._policy["version"], end=end)
        return end

    def _parcel(self, sequence: int) -> codec.Parcel:
        record, sampling = self._stored(self._draw[sequence]), self.config.sampling
        group = m.Group(
            record,
            m.Sampling(
                samples=sampling.samples,
                max_new_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                stop=list(sampling.stop),
                seed=seed_of(self.config.run.seed, sequence),
            ),
            sequence=sequence,
            min_version=self._policy["version"],
            system=self.config.policy.system,
            prefix=self.config.policy.prefix,
        )
        route = list(self.config.recipe.families[record.label].route)
        return codec.pack(group, id=f"{sequence:08d}-{record.id}"[:200], route=route, sequence=sequence)

    def _stored(self, record: m.Record) -> m.Record:
        """The record with hashes for its images, which are in the store. Raises ActorError for one that has changed since the start."""
        if not images.has_images(record):
            return record
        try:
            found = images.images(record)
            references = [msgspec.to_builtins(images.refer(image)) for image in found]
        except images.ImageError as error:
            raise ActorError(f"{record.id!r}: an image cannot be had any more: {error}") from error
        for image in found:
            self._store.put(image.data)
        return images.replaced(record, references)


class PlannedDraw:
    """Position -> record by a curriculum, whose plans are in a file before they are used."""

    def __init__(self, file: Path, records: Sequence[m.Record], seed: int, data: Data) -> None:
        """Raises ConfigError where the file is of other data."""
        assert data.curriculum is not None
        state = file.read_bytes() if file.exists() else None
        self._file = file
        self._curriculum = Curriculum(records, seed, data.curriculum, data.families, data.epochs, state)
        self.total = self._curriculum.total

    def __getitem__(self, position: int) -> m.Record:
        while (record := self._curriculum.record(position)) is None:
            if self._curriculum.plan() is None:
                raise IndexError(f"position {position} is behind the end of the data")
            self._file.parent.mkdir(parents=True, exist_ok=True)
            partial = self._file.with_suffix(".partial")
            with partial.open("wb") as file:
                file.write(self._curriculum.save())
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._file)
        return record

    def observe(self, outcomes: Sequence[Any]) -> None:
        for each in outcomes:
            self._curriculum.observe(*outcome(each))


def seed_of(run_seed: int, sequence: int) -> int:
    """The seed of a group's sampling: 63 bits that depend on the run's seed and the position alone."""
    digest = hashlib.blake2b(f"{run_seed}/{sequence}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
