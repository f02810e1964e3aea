"""Verifier pool: reads what was generated and adds typed verdicts.

Inbox: groups. Outbox: the same groups with the verdicts of this pool's verifiers. Blocks on nothing but its own verifiers, each under
`timeout_s`; one that fails leaves verdicts of status error or timeout, which are never scores, and the sample is
tried again up to `tries` times before they stand. Verifiers that compute take turns; those that wait, for an engine or a server, have as
many groups in work as the pool has credit. Images are found before anything is judged (`image_source.py`); verifiers get their
paths. If this process dies, the hub gives its groups to another replica.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import msgspec

from safeladder.actors.actor import Actor, Delivery
from safeladder.actors.image_source import ImageSource
from safeladder.launch.config import ConfigError
from safeladder.protocol import images
from safeladder.protocol import messages as m
from safeladder.verifiers import cache, steps
from safeladder.verifiers.cache import CacheOptions, VerdictCache
from safeladder.verifiers.certainty import certainty
from safeladder.verifiers.contract import Item, Verifier, run
from safeladder.verifiers.registry import BadOptions, UnknownVerifier, create

FAILED = ("error", "timeout")


class VerifierPool(Actor):
    """Runs the verifiers that its options name, on every completion of a group, or on every step of it."""

    role = "verifier"

    @dataclass
    class Options:
        """`verifiers`: name -> its options, built-in names or `my_package.my_module:MyVerifier`. `steps`: judge each step."""

        verifiers: dict[str, Any] = field(default_factory=dict)
        timeout_s: float = 60.0
        tries: int = 2
        steps: bool = False
        cache: CacheOptions = field(default_factory=CacheOptions)

    async def start(self) -> None:
        try:
            self._verifiers: list[Verifier] = [
                create(name, options or {}) for name, options in self.options.verifiers.items()
            ]
        except (UnknownVerifier, BadOptions) as error:
            raise ConfigError(f"pools.{self.context.name.partition('/')[0]}.options.verifiers: {error}") from error
        self._cache = VerdictCache(self.options.cache)
        self._images = ImageSource(self)
        self._turn = asyncio.Lock()
        self._threads = ThreadPoolExecutor(
            max(1, self.context.pool.credit) * max(1, len(self._verifiers)), thread_name_prefix="judging"
        )
        self._failed = 0
        for verifier in self._verifiers:
            await asyncio.to_thread(verifier.start)

    async def handle(self, delivery: Delivery) -> m.Group:
        record = await asyncio.to_thread(self._record, delivery.group.record)
        items = self._items(delivery, record)
        verdicts = await asyncio.gather(*(self._verdicts(verifier, items) for verifier in self._verifiers))
        self.metrics = {
            "cache_hits": self._cache.hits,
            "cache_misses": self._cache.misses,
            "failed_verdicts": self._failed,
        }
        group = delivery.group
        self.log.info(
            "group.judged",
            id=delivery.id,
            verdicts=columns([v for given in verdicts for v in given], self.config.logs.texts),
        )
        return msgspec.structs.replace(group, verdicts=[*group.verdicts, *(v for given in verdicts for v in given)])

    def _record(self, record: m.Record) -> m.Record:
        """The record with the paths of its images. Raises ImageError where one cannot be had: the group is tried again."""
        if not images.has_images(record):
            return record
        found = self._images.fetch(record)
        placed = [{"path": str(self._images.path(each.hash)), "type": each.type} for each in found]
        return images.replaced(record, placed)

    def _items(self, delivery: Delivery, record: m.Record) -> list[Item]:
        group = delivery.group
        items = [
            Item(
                record,
                group.prefix + completion.text,
                sample,
                completion.finish,
                certainty=certainty(group, delivery.arrays, sample),
            )
            for sample, completion in enumerate(group.completions)
        ]
        return [step for item in items for step in steps.of(item, len(group.prefix))] if self.options.steps else items

    async def _verdicts(self, verifier: Verifier, items: Sequence[Item]) -> list[m.Verdict]:
        """One verdict an item: from the cache where there is one, else judged, again where that failed."""
        names = [cache.name_of(verifier, item) for item in items] if self.options.cache.entries else [None] * len(items)
        verdicts = [name and self._cache.get(name, item) for name, item in zip(names, items, strict=True)]
        for _ in range(max(1, self.options.tries)):
            open_ = [i for i, verdict in enumerate(verdicts) if not verdict or verdict.status in FAILED]
            if not open_:
                break
            given = await self._judge(verifier, [items[i] for i in open_])
            self.worked()
            for index, verdict in zip(open_, given, strict=True):
                verdicts[index] = verdict
                if name := names[index]:
                    self._cache.put(name, verdict)
        for verdict in verdicts:
            if verdict.status in FAILED:
                self._failed += 1
                self.log.warning(
                    "verdict.failed", verifier=verdict.verifier, status=verdict.status, error=verdict.error
                )
        return verdicts

    async def _judge(self, verifier: Verifier, items: Sequence[Item]) -> list[m.Verdict]:
        loop = asyncio.get_running_loop()
        if verifier.waits:
            return await loop.run_in_executor(self._threads, run, [verifier], items, self.options.timeout_s)
        async with self._turn:
            return await loop.run_in_executor(self._threads, run, [verifier], items, self.options.timeout_s)

    async def stop(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for verifier in self._verifiers:
            await asyncio.to_thread(verifier.stop)
        self._cache.close()


def columns(verdicts: Sequence[m.Verdict], texts: bool) -> dict[str, dict[str, list[Any]]]:
    """Verdicts for the log: verifier -> field -> an entry a verdict; a field in which all say nothing is left out.

    `samples` and `statuses` are left out too where they are 0, 1, 2, ... and all "ok". texts: what a judge said, up to 500
    characters, is told too; it may quote the answer.
    """
    found: dict[str, dict[str, list[Any]]] = {}
    for name in dict.fromkeys(verdict.verifier for verdict in verdicts):
        own = [verdict for verdict in verdicts if verdict.verifier == name]
        rows: dict[str, list[Any]] = {
            "samples": [v.sample for v in own],
            "statuses": [v.status for v in own],
            "steps": [v.step for v in own],
            "scores": [None if v.score is None else round(v.score, 5) for v in own],
            "labels": [v.label for v in own],
            "errors": [v.error and v.error[:200] for v in own],
            "rationales": [v.rationale and v.rationale[:500] if texts else None for v in own],
        }
        usual = {"samples": list(range(len(own))), "statuses": ["ok"] * len(own)}
        found[name] = {key: rows[key] for key in rows if rows[key] != usual.get(key, [None] * len(own))}
        found[name]["versions"] = list(dict.fromkeys(v.version for v in own))
    return found
