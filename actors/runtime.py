"""The machinery under an actor: deliveries in, outcomes out, beats, drain, stop.

The event loop of the main thread runs the actor; the link's own thread does all input and output. If the hub dies, the link says
hello again and nothing here notices. If the actor's code raises, the work goes back to the hub. If it stops making progress while it
holds work, its beats say so (`busy_s`) and the supervisor ends the process, whose leases then go to another.
"""

from __future__ import annotations

import asyncio
import inspect
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakValueDictionary

import psutil

from safeladder.actors.actor import Actor, Context, Delivery, Ended, HandBack, Keep, Outcome, Output, Postpone, Reject
from safeladder.protocol import codec
from safeladder.protocol import link as links

DRAIN_S = 60.0


class Runtime:
    """Runs one actor until it is told to stop or its `run` returns."""

    def __init__(self, kind: type[Actor], drain_s: float = DRAIN_S) -> None:
        self.kind = kind
        self.drain_s = drain_s
        self.handled = self.failed = 0
        self._waiting: asyncio.Queue[Delivery] = asyncio.Queue()
        self._active: dict[int, Delivery] = {}
        self._kept: WeakValueDictionary[int, Delivery] = WeakValueDictionary()  # the actor holds them
        self._tasks: set[asyncio.Task[None]] = set()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="handle")
        self._busy_since: float | None = None
        self._process = psutil.Process()
        self._progress = 0
        self._actor: Actor | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # ---------------------------------------------------------------------------------------- called by the link's thread

    def on_event(self, event: links.Event) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._on_event, event)

    def vitals(self) -> tuple[int, float, dict[str, float]]:
        """Progress, seconds in the present work without progress, metrics."""
        actor = self._actor
        if actor is None:
            return 0, 0.0, {}
        if actor.progress + self.handled != self._progress:
            self._progress = actor.progress + self.handled
            self._busy_since = time.monotonic() if self._active else None
        busy_s = time.monotonic() - self._busy_since if self._busy_since is not None else 0.0
        return self._progress, round(busy_s, 3), {**actor.metrics, "rss_bytes": float(self._process.memory_info().rss)}

    # ----------------------------------------------------------------------------------------------------- the event loop

    async def run(self, context: Context, options: Any) -> None:
        """Starts the actor, serves until it stops, drains."""
        self._loop = asyncio.get_running_loop()
        actor = self._actor = self.kind(context, options)
        await asyncio.to_thread(context.link.start)
        for topic, value in context.link.state.items():
            actor.noticed(topic, value)
        async with asyncio.timeout(context.pool.start_s):
            await actor.start()
        context.log.info("actor.ready", queues=context.pool.queues, credit=context.pool.credit)
        context.link.set_credit(context.pool.credit)
        server = asyncio.create_task(self._serve(actor))
        activity = asyncio.create_task(actor.run())
        try:
            done, _ = await asyncio.wait({server, activity}, return_when=asyncio.FIRST_COMPLETED)
            actor.stopping.set()
            for task in done:
                task.result()
            # the actor's own activity may still have to end in order (the learner's last checkpoint)
            async with asyncio.timeout(self.drain_s):
                await activity
        finally:
            server.cancel()
            await self._drain(actor)

    def stop(self) -> None:
        """Asks for an orderly end."""
        if self._actor is not None:
            self._actor.stopping.set()

    async def _serve(self, actor: Actor) -> None:
        """Feeds deliveries to the actor until it is stopping."""
        stop = asyncio.create_task(actor.stopping.wait())
        concurrent = inspect.iscoroutinefunction(actor.handle)
        while not stop.done():
            receive = asyncio.create_task(self._waiting.get())
            await asyncio.wait({receive, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not receive.done():
                receive.cancel()
                return
            deliveries = [receive.result()]
            if concurrent:
                task = asyncio.create_task(self._handle(actor, deliveries))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                while len(deliveries) < actor.batch and not self._waiting.empty():
                    deliveries.append(self._waiting.get_nowait())
                await self._handle(actor, deliveries)

    async def _handle(self, actor: Actor, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            self._active[delivery.lease] = delivery
        if self._busy_since is None:
            self._busy_since = time.monotonic()
        begun = time.perf_counter()
        try:
            outcomes = await self._call(actor, deliveries)
        except Reject as error:
            if len(deliveries) > 1:
                await self._one_by_one(actor, deliveries)
                return
            self._fail(actor, deliveries[0], str(error), retry=False)
        except Postpone as reason:
            for delivery in deliveries:
                actor.log.info("work.postponed", id=delivery.id, reason=str(reason))
                delivery.give_back(str(reason))
        except Exception as error:  # the process boundary: the work goes back, with what happened
            if len(deliveries) > 1:
                await self._one_by_one(actor, deliveries)
                return
            detail = "".join(traceback.format_exception(error)[-3:])
            self._fail(actor, deliveries[0], f"{type(error).__name__}: {error}", retry=True, detail=detail)
        else:
            for delivery, outcome in zip(deliveries, outcomes, strict=True):
                self._settle(actor, delivery, outcome, time.perf_counter() - begun)
        finally:
            for delivery in deliveries:
                self._active.pop(delivery.lease, None)
            if not self._active:
                self._busy_since = None

    async def _one_by_one(self, actor: Actor, deliveries: list[Delivery]) -> None:
        """One bad work must not spoil the batch: each on its own."""
        for delivery in deliveries:
            await self._handle(actor, [delivery])

    async def _call(self, actor: Actor, deliveries: list[Delivery]) -> Sequence[Outcome]:
        if inspect.iscoroutinefunction(actor.handle):
            return [await actor.handle(deliveries[0])]
        loop = asyncio.get_running_loop()
        if actor.batch > 1:
            return await loop.run_in_executor(self._executor, actor.handle_batch, deliveries)
        return [await loop.run_in_executor(self._executor, actor.handle, deliveries[0])]

    def _settle(self, actor: Actor, delivery: Delivery, outcome: Outcome, seconds: float) -> None:
        if delivery.revoked:
            return  # another has the work: this outcome would be refused as stale
        if outcome is Keep or isinstance(outcome, Keep):
            self._kept[delivery.lease] = delivery
            return
        if isinstance(outcome, HandBack):
            actor.log.info("work.handed_back", id=delivery.id, reason=outcome.reason)
            delivery.give_back(outcome.reason, output=outcome.output)
            return
        self.handled += 1
        link, work = delivery.link, delivery.work
        if isinstance(outcome, Ended):
            link.done(delivery.lease, ended=outcome.reason)
        elif outcome is None and delivery.last_stop:
            link.done(delivery.lease)
        elif outcome is None:
            self._fail(
                actor, delivery, f"{type(actor).__name__}.handle returned nothing before the last stop", retry=False
            )
            return
        else:
            output = outcome if isinstance(outcome, Output) else Output(outcome, delivery.arrays)  # type: ignore[arg-type]
            stop = work.stop if delivery.last_stop else work.stop + 1
            parcel = delivery.pack(output, stop)
            link.done(delivery.lease, [parcel] if stop > work.stop or work.reply_to else [])
        actor.log.debug("work.handled", id=work.id, queue=work.route[work.stop], seconds=round(seconds, 4))

    def _fail(self, actor: Actor, delivery: Delivery, error: str, retry: bool, detail: str = "") -> None:
        self.failed += 1
        actor.log.warning(
            "work.failed", id=delivery.id, attempt=delivery.attempt, error=error, retry=retry, detail=detail
        )
        delivery.link.fail(delivery.lease, error, retry=retry)

    def _on_event(self, event: links.Event) -> None:
        actor = self._actor
        assert actor is not None and self._loop is not None
        match event:
            case links.Leased():
                self._receive(actor, event)
            case links.Revoked():
                delivery = self._active.get(event.lease) or self._kept.pop(event.lease, None)
                if delivery is not None:
                    delivery.revoked = True
                    actor.log.info("lease.revoked", id=delivery.id)
                    actor.revoked(delivery)
            case links.Noticed():
                actor.noticed(event.topic, event.value)
            case links.Welcomed():
                for topic, value in event.state.items():
                    actor.noticed(topic, value)
            case links.Refused():
                actor.stopping.set()

    def _receive(self, actor: Actor, event: links.Leased) -> None:
        link = actor.link
        if actor.stopping.is_set():
            link.fail(event.lease, "the worker is stopping", returned=True)
            return
        try:
            payload, arrays = codec.unpack(event.parcel)
        except codec.WireError as error:
            actor.log.warning("work.failed", id=event.parcel.work.id, error=str(error), retry=False)
            link.fail(event.lease, str(error), retry=False)
            return
        self._waiting.put_nowait(Delivery(event.lease, event.attempt, event.parcel.work, payload, arrays, link))

    async def _drain(self, actor: Actor) -> None:
        """What was not begun goes back, what was begun may end or be handed back, the rest goes back with the good-bye.

        Half of `drain_s` is for that, the other half for the actor's own stop; the link has a deadline of its own.
        """
        actor.link.set_credit(0)
        while not self._waiting.empty():
            self._waiting.get_nowait().give_back("the worker is stopping")
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.drain_s / 2)
        for task in self._tasks:
            task.cancel()
        try:
            async with asyncio.timeout(self.drain_s / 2):
                await actor.stop()
        finally:
            self._executor.shutdown(wait=False, cancel_futures=True)
            await asyncio.to_thread(actor.link.close, "stopped")
