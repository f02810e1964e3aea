"""Eight faults in one run of real processes, provoked one after the other, and how each was named. For the test and for the benchmark.

What names a fault is `safeladder who-waits` (asked again and again, as a user would), or what the launcher has written into its log
by itself: a health rule, or a standstill.
"""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from running import Running

from safeladder.launch import diagnosis
from safeladder.launch.config import ConfigError
from safeladder.launch.events import Event, Tail, seconds

DEADLINE_S = 120.0  # of each wait: processes start slowly on a busy machine
HERE = Path(__file__).parent
FAMILY = "{route: [generator, custom, judge, learner], terms: {judge: 1.0}}"
POOLS = {
    "feeder": "{actor: 'safeladder.actors.feeder:Feeder'}",
    "generator": "{actor: 'faulty_actors:HangingGenerator', credit: 4, "
    "options: {engine: 'faulty_engine:WrongEngine', max_sequences: 8, max_tokens: 8192}}",
    "custom": "{actor: 'faulty_actors:Careless', credit: 4, replicas: 2}",
    "judge": "{actor: 'safeladder.actors.verifier:VerifierPool', credit: 4, restart: {backoff_s: 15}, "
    "options: {verifiers: {'faulty_actors:Judge': {}}}}",
    "learner": "{actor: 'faulty_actors:SlowLearner', credit: 16}",
}
SETTINGS = (
    "learner.steps=100000",
    "learner.reference_kl=0",
    "hub.silence_s=3",
    "hub.durability=full",  # the journal soon is larger than any file of the log, which the full disk then does not meet
    "logs={max_bytes: 16384, keep: 1000}",
    *(f"recipe.families.{label}={FAMILY}" for label in ("normal", "safety", "general_rule", "knowledge_rule")),
    "data.families={safety: 1, normal: 1}",
    "pools={" + ", ".join(f"{name}: {pool}" for name, pool in POOLS.items()) + "}",
)


@dataclass(frozen=True)
class Named:
    """seconds: from the provocation, or from `effect` where that comes later, to the words. by: who-waits, rule or run.stalled."""

    fault: str
    effect: str
    seconds: float
    by: str
    words: str


def environment(folder: Path) -> dict[str, str]:
    """What the processes of the run need to find the faulty actors and their orders."""
    (folder / "faults").write_text("")
    return {"FAULTS": str(folder / "faults"), "PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}"}


class Faults:
    """Provokes faults in a run that is going on; each method undoes its fault where another follows."""

    def __init__(self, running: Running, folder: Path) -> None:
        self._running, self._file = running, folder / "faults"
        self._flags: set[str] = set()
        self._tail = Tail(running.run.path / "logs")
        self._events: dict[tuple[str, int, str], list[Event]] = {}

    def all(self) -> Iterator[Named]:
        self._until(lambda: len(self._steps()) >= 3)
        yield self.constant_reward()
        yield self.slow_learner()
        self._until(self._settled)
        leaking = self._set("leak")
        yield self.stuck_generator()
        yield self._named("memory leak in a custom actor", "", leaking, rule="memory_growth", subject="custom/1")
        self._clear("leak")
        yield self.late_answer()
        yield self.full_disk()
        yield self.dead_pool()
        yield self.wrong_weights()

    def constant_reward(self) -> Named:
        since = self._set("constant")
        named = self._named("one family's reward constant", "", since, rule="dead_channel", subject="family safety")
        self._clear("constant")
        return named

    def slow_learner(self) -> Named:
        since = self._set("slow")
        named = self._named(
            "learner slower than generators", "", since, waits="learner/0 computes, and the others wait"
        )
        self._clear("slow")
        return self._moving(named)

    def stuck_generator(self) -> Named:
        since = self._set("hang")
        named = self._named("generator stuck", "", since, waits="generator/0 has made no progress")
        self._clear("hang")
        return self._moving(named)

    def late_answer(self) -> Named:
        """custom/0 is stopped with works in its hands, and answers them when another has done them."""
        self._set("keep")
        self._until(lambda: self._worker("custom/0").get("leases", 0) > 0)
        process = self._pid("custom/0")
        os.kill(process, signal.SIGSTOP)
        try:
            self._clear("keep")
            lost = lambda: any(e["name"] == "custom/0" for e in self._logged("hub", "worker.lost"))  # noqa: E731
            self._until(lost)
        finally:
            since = time.time()
            os.kill(process, signal.SIGCONT)
        effect = "its process goes on"
        named = self._named("duplicate answer after lease loss", effect, since, rule="late_answers", subject="custom/0")
        return self._moving(named)

    def full_disk(self) -> Named:
        """The hub's process may not let any file grow beyond what the journal has now."""
        hub = self._pid("hub/0")
        before = resource.prlimit(hub, resource.RLIMIT_FSIZE)
        since = time.time()
        resource.prlimit(hub, resource.RLIMIT_FSIZE, (self._running.run.journal.stat().st_size, before[1]))
        try:
            named = self._named("hub journal disk full", "", since, waits="the hub cannot write its journal")
        finally:
            resource.prlimit(hub, resource.RLIMIT_FSIZE, before)
        return self._moving(named)

    def dead_pool(self) -> Named:
        since = time.time()
        self._running.kill("judge")
        named = self._named("dead verifier pool", "", since, waits="no process takes from 'judge'")
        return self._moving(named)

    def wrong_weights(self) -> Named:
        since = self._set("wrong")
        named = self._named("version not attested", "", since, rule="unattested_weights", subject="generator/0")
        self._clear("wrong")
        return named

    # --------------------------------------------------------------------------------------------------- watching

    def _named(
        self, fault: str, effect: str, since: float, waits: str = "", rule: str = "", subject: str = ""
    ) -> Named:
        """Waits until somebody has said it. waits: what the wait graph should say; rule, subject: what a warning should be of."""
        found: list[Named] = []

        def look() -> bool:
            if waits and (cause := self._cause()) and waits in cause:
                found.append(Named(fault, effect, time.time() - since, "who-waits", cause))
            for event in self._logged("launcher", "health.warning") if rule else ():
                if (event["rule"], event["subject"]) == (rule, subject) and seconds(event) >= since:
                    found.append(
                        Named(fault, effect, seconds(event) - since, f"rule {rule}", f"{subject}: {event['found']}")
                    )
            return bool(found)

        self._until(look)
        return found[0]

    def _cause(self) -> str:
        try:
            waits = diagnosis.who_waits(self._running.run, time.time())
        except ConfigError:
            return ""
        return waits.cause

    def _moving(self, named: Named) -> Named:
        """What was named is over: the run has made a step since."""
        steps = len(self._steps())
        self._until(lambda: len(self._steps()) > steps)
        return named

    def _settled(self) -> bool:
        """The health rules look at a process's memory once it has taken works for some time."""
        ready = self._logged("custom", "actor.ready", replica=1)
        return bool(ready) and time.time() - seconds(ready[0]) > 12.0

    def _steps(self) -> list[Event]:
        return self._logged("learner", "step.completed")

    def _worker(self, name: str) -> dict[str, Any]:
        status = self._logged("hub", "hub.status")
        return status[-1]["workers"].get(name, {}) if status else {}

    def _pid(self, name: str) -> int:
        born = [*self._logged("launcher", "process.started"), *self._logged("launcher", "process.restarted")]
        return int([event for event in born if event.get("name") == name][-1]["child_pid"])

    def _logged(self, role: str, event: str, replica: int = 0) -> list[Event]:
        for line in self._tail.read():
            self._events.setdefault((line["role"], line["replica"], line["event"]), []).append(line)
        return self._events.get((role, replica, event), [])

    def _until(self, condition: Callable[[], bool]) -> None:
        self._running.until(condition, DEADLINE_S)

    # --------------------------------------------------------------------------------------------------- the faults

    def _set(self, fault: str) -> float:
        self._write(self._flags | {fault})
        return time.time()

    def _clear(self, fault: str) -> None:
        self._write(self._flags - {fault})

    def _write(self, flags: set[str]) -> None:
        self._flags = flags
        fresh = self._file.with_suffix(".new")
        fresh.write_text(" ".join(sorted(flags)))
        fresh.replace(self._file)
