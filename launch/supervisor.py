"""Keeps a run's processes alive, and ends them in order.

One loop on the main thread. It wakes when a process ends (pidfd), a signal arrives, `stop` is called, or something is
due. A process that ends is restarted after a growing wait, within its pool's budget; nobody else is restarted with
it, also not after the hub: workers say hello to its successor by themselves. A process that a hook calls stalled gets
SIGUSR1 (it dumps its threads), SIGTERM, SIGKILL.

    RUNNING    the learner ends in order -> DRAINING; a signal, `stop`, a spent budget, wrong configuration -> FINISHING
    FINISHING  the learner has been asked to write a checkpoint and end; it ends, or its time is up -> DRAINING
    DRAINING   SIGTERM by stage: feeder, then the working pools, learner, hub; SIGKILL where one overstays

Every wait has a deadline, so that each phase ends whatever the processes do. If the supervisor itself is killed, the
guardian and the kernel's parent's-death signal end the rest.
"""

from __future__ import annotations

import enum
import os
import random
import selectors
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog

from safeladder.launch.child import Child, Exit
from safeladder.launch.guardian import Guardian
from safeladder.launch.prefork import Prefork
from safeladder.launch.processes import HUB, Process

EXIT_DONE, EXIT_FAILED, EXIT_CONFIGURATION, EXIT_INTERRUPTED = 0, 1, 78, 130
MAX_BACKOFF_S = 30.0
TICK_S = 1.0
POLL_S = 0.05  # how often to ask whether prefork is ready, and for ends where the kernel has no pidfd


@dataclass(frozen=True)
class Limits:
    """Seconds for the learner's last checkpoint, each stage's drain, a stalled process's dump, and its SIGTERM."""

    finish_s: float = 120.0
    drain_s: float = 30.0
    dump_s: float = 5.0
    term_s: float = 5.0


@dataclass
class Ended:
    """One end of a process. code: exit status, or minus the signal's number."""

    pid: int
    code: int
    reason: str
    seconds: float
    tail: list[str]


@dataclass
class Record:
    """What became of a process over the run."""

    name: str
    starts: int = 0
    exits: list[Ended] = field(default_factory=list)

    @property
    def restarts(self) -> int:
        return max(0, self.starts - 1)


@dataclass(frozen=True)
class Outcome:
    """How the run ended: 0 done, 1 failed, 78 configuration, 130 interrupted."""

    code: int
    reason: str
    processes: list[Record]


class Phase(enum.Enum):
    RUNNING = enum.auto()
    FINISHING = enum.auto()
    DRAINING = enum.auto()


@dataclass(eq=False)
class _Slot:
    """A process's place. `orders`: signals still to be sent to its present child, with their times, ascending."""

    process: Process
    record: Record
    child: Child | None = None
    due: float | None = None
    orders: list[tuple[float, int]] = field(default_factory=list)


class Supervisor:
    """Runs `processes` until the learner is done or somebody stops them. `run` must be called on the main thread.

    on_exit: told the name of each worker that has ended, so that the hub can give its work to others. stalled: asked
    each second for workers that make no progress, with the seconds. notice: given a line for the user on each restart
    or failure. prefork: what starts those that may fork.
    """

    def __init__(
        self,
        processes: Sequence[Process],
        guardian: Guardian,
        on_exit: Callable[[str], None] = lambda name: None,
        stalled: Callable[[], Sequence[tuple[str, float]]] = list,
        notice: Callable[[str], None] = lambda text: None,
        limits: Limits = Limits(),
        prefork: Prefork | None = None,
    ) -> None:
        self._slots = [_Slot(process, Record(process.name)) for process in processes]
        self._guardian, self._limits = guardian, limits
        self._on_exit, self._stalled, self._notice, self._prefork = on_exit, stalled, notice, prefork
        self._log: Any = structlog.get_logger()
        self._phase = Phase.RUNNING
        self._code, self._reason = EXIT_FAILED, "ended before it began"
        self._told_of_prefork: tuple[float | None, str | None] = (None, None)
        self._budgets: dict[str, deque[float]] = {}
        self._asked: list[tuple[str, int]] = []
        self._signals = self._signals_seen = 0
        self._ticked = 0.0
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wake_in, selectors.EVENT_READ)
        self._waking, self._over = threading.Lock(), False

    def run(self) -> Outcome:
        """Starts everything, returns when everything has ended."""
        with self._catching_signals():
            try:
                for slot in self._slots:
                    self._start(slot)
                while self._step():
                    pass
            finally:  # also when this loop itself fails
                self._kill_all()
                for slot in self._living():
                    self._reap(slot)
        self._log.info("run.finished", code=self._code, reason=self._reason)
        return Outcome(self._code, self._reason, [slot.record for slot in self._slots])

    def stop(self, reason: str, code: int = EXIT_FAILED) -> None:
        """Asks for an orderly end. Safe to call from any thread, and without effect when the run has ended."""
        with self._waking:
            if not self._over:
                self._asked.append((reason, code))
                os.write(self._wake_out, b"s")

    # ------------------------------------------------------------------------------------------------------ the loop

    def _step(self) -> bool:
        """One round. False when the run has ended."""
        self._wait()
        self._attend_signals()
        for slot in self._living():
            if slot.child is not None and slot.child.ended():
                self._ended(slot, self._reap(slot))
        now = time.monotonic()
        for slot in self._slots:
            if slot.due is not None and slot.due <= now:
                self._start(slot)
            while slot.orders and slot.orders[0][0] <= now:
                self._send(slot, slot.orders.pop(0)[1])
        if now - self._ticked >= TICK_S:
            self._ticked = now
            self._guardian.ensure()
            if self._phase is Phase.RUNNING:
                self._attend_stalls(now)
        return self._advance(now)

    def _wait(self) -> None:
        now = time.monotonic()
        times = [self._ticked + TICK_S]
        for slot in self._slots:
            if slot.due is not None:
                times.append(slot.due)
            if slot.orders:
                times.append(slot.orders[0][0])
            if slot.child is not None and slot.child.pidfd is None:
                times.append(now + POLL_S)
        for key, _ in self._selector.select(max(0.0, min(times) - now)):
            if key.fd == self._wake_in:
                os.read(self._wake_in, 4096)

    def _attend_signals(self) -> None:
        if self._signals > self._signals_seen:
            self._signals_seen = self._signals
            if self._phase is Phase.RUNNING:
                self._notice("stopping: the learner writes a checkpoint; once more to end at once")
                self._finish("interrupted", EXIT_INTERRUPTED)
            elif self._signals > 1:
                self._log.warning("run.killed")
                self._code, self._reason = EXIT_INTERRUPTED, "interrupted twice; everything was killed"
                self._drain()
                self._kill_all()
        while self._asked:
            self._finish(*self._asked.pop(0))

    def _attend_stalls(self, now: float) -> None:
        by_name = {slot.process.name: slot for slot in self._slots}
        for name, seconds in self._stalled():
            slot = by_name.get(name)
            if slot is None or slot.child is None or slot.orders:
                continue
            self._log.warning("process.stalled", name=name, child_pid=slot.child.pid, seconds=round(seconds, 1))
            self._notice(f"{name} has made no progress for {seconds:.0f} s; it is ended and started again")
            term, kill = now + self._limits.dump_s, now + self._limits.dump_s + self._limits.term_s
            slot.orders = [(now, signal.SIGUSR1), (term, signal.SIGTERM), (kill, signal.SIGKILL)]

    def _advance(self, now: float) -> bool:
        """Moves the phase on where it can. False when nothing lives any more."""
        if self._phase is Phase.FINISHING and not any(slot.process.final for slot in self._living()):
            self._drain()
        if self._phase is Phase.DRAINING:
            living = self._living()
            if not living:
                return False
            stage = min(slot.process.stage for slot in living)
            for slot in living:
                if slot.process.stage == stage and not slot.orders:
                    slot.orders = [(now, signal.SIGTERM), (now + self._limits.drain_s, signal.SIGKILL)]
        elif not self._living() and not any(slot.due for slot in self._slots):
            self._finish("every process has ended, and none of them was the learner", EXIT_FAILED)
        return True

    # ---------------------------------------------------------------------------------------------- one process's life

    def _start(self, slot: _Slot) -> None:
        slot.due = None
        prefork = self._prefork if slot.process.forks else None
        if prefork is not None and prefork.preparing():
            slot.due = time.monotonic() + POLL_S
            return
        try:
            child = slot.child = Child(slot.process, prefork)
        except OSError as error:
            reason = f"{slot.process.name}: cannot run {slot.process.command[0]!r}: {error.strerror}"
            self._log.error("process.failed", name=slot.process.name, reason=reason)
            slot.record.exits.append(Ended(0, EXIT_CONFIGURATION, reason, 0.0, []))
            self._finish(reason, EXIT_CONFIGURATION)
            return
        self._tell_of_prefork()
        slot.record.starts += 1
        self._guardian.watch(child.pid)
        if child.pidfd is not None:
            self._selector.register(child.pidfd, selectors.EVENT_READ)
        event = "process.started" if slot.record.starts == 1 else "process.restarted"
        self._log.info(event, name=child.name, child_pid=child.pid, starts=slot.record.starts)

    def _tell_of_prefork(self) -> None:
        """Once when it is ready, once when it is lost."""
        prefork = self._prefork
        if prefork is None or (prefork.ready_s, prefork.lost) == self._told_of_prefork:
            return
        self._told_of_prefork = prefork.ready_s, prefork.lost
        if prefork.lost is not None:
            self._log.warning("prefork.lost", reason=prefork.lost, child_pid=prefork.pid)
        elif prefork.ready_s is not None:
            self._log.info("prefork.ready", seconds=prefork.ready_s, child_pid=prefork.pid)

    def _reap(self, slot: _Slot) -> Exit:
        """Takes the ended child out of its place and notes how it ended."""
        child = slot.child
        assert child is not None
        if child.pidfd is not None:
            self._selector.unregister(child.pidfd)
        end = child.reap()
        self._guardian.forget(child.pid)
        slot.child, slot.orders = None, []
        slot.record.exits.append(Ended(child.pid, end.code, end.reason, round(end.seconds, 3), end.tail))
        fields = {"child_pid": child.pid, "code": end.code, "reason": end.reason, "seconds": round(end.seconds, 3)}
        self._log.info("process.exited", name=child.name, **fields, tail=end.tail if end.code else [])
        return end

    def _ended(self, slot: _Slot, end: Exit) -> None:
        """What follows from the end of a process."""
        process = slot.process
        if process.pool != HUB:
            self._on_exit(process.name)
        if self._phase is Phase.DRAINING or (self._phase is Phase.FINISHING and process.pool != HUB):
            return
        if end.code == EXIT_DONE and process.final:
            self._code, self._reason = EXIT_DONE, "done"
            self._drain()
        elif end.code == EXIT_CONFIGURATION:
            last = end.tail[-1] if end.tail else "it did not say what"
            self._finish(f"{process.name} cannot run as configured: {last}", EXIT_CONFIGURATION)
        elif end.code != EXIT_DONE or process.server:
            self._restart(slot, end)

    def _restart(self, slot: _Slot, end: Exit) -> None:
        """Schedules the next start, or gives the run up when the pool's budget is spent."""
        process, now = slot.process, time.monotonic()
        budget = self._budgets.setdefault(process.pool, deque())
        while budget and now - budget[0] > process.restart.per_s:
            budget.popleft()
        last = f": {end.tail[-1]}" if end.tail else ""
        if len(budget) >= process.restart.max:
            spent = f"{len(budget)} restarts in {process.restart.per_s:g} s are used up"
            self._finish(f"{process.name} ended ({end.reason}) and its pool's {spent}{last}", EXIT_FAILED)
            return
        wait = min(MAX_BACKOFF_S, process.restart.backoff_s * 2 ** len(budget)) * random.uniform(0.5, 1.0)
        budget.append(now)
        slot.due = now + wait
        self._notice(f"{process.name} ended ({end.reason}){last}; restart {len(budget)} in {wait:.1f} s")

    # ------------------------------------------------------------------------------------------------------ the end

    def _finish(self, reason: str, code: int) -> None:
        """The learner is asked to end; the first reason is the one that is reported."""
        if self._phase is not Phase.RUNNING:
            return
        self._phase, self._code, self._reason = Phase.FINISHING, code, reason
        self._log.info("run.stopping", reason=reason, code=code)
        now = time.monotonic()
        for slot in self._slots:
            if slot.process.pool != HUB:
                slot.due = None
            if slot.process.final:
                slot.orders = [(now, signal.SIGTERM), (now + self._limits.finish_s, signal.SIGKILL)]

    def _drain(self) -> None:
        self._phase = Phase.DRAINING
        self._log.info("run.draining", reason=self._reason)
        for slot in self._slots:
            slot.due, slot.orders = None, []

    def _send(self, slot: _Slot, number: int) -> None:
        if slot.child is None:
            return
        if number == signal.SIGKILL:
            self._log.warning("process.killed", name=slot.process.name, child_pid=slot.child.pid)
            slot.child.kill_group()
        else:
            slot.child.signal(number)

    def _kill_all(self) -> None:
        for slot in self._living():
            if slot.child is not None:
                slot.child.kill_group()

    def _living(self) -> list[_Slot]:
        return [slot for slot in self._slots if slot.child is not None]

    @contextmanager
    def _catching_signals(self) -> Iterator[None]:
        def note(number: int, frame: object) -> None:
            self._signals += 1

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, note) for number in numbers}
        wakeup = signal.set_wakeup_fd(self._wake_out, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            with self._waking:
                self._over = True
                self._selector.close()
                os.close(self._wake_in)
                os.close(self._wake_out)
