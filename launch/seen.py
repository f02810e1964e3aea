"""What the health rules look at, kept from the stream of events, and what they find."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from safeladder.launch.events import Event, seconds

STEPS_KEPT: Final = 256
VERDICTS_KEPT: Final = 256
MEMORY_EVERY_S: Final = 10.0
MEMORY_KEPT: Final = 360  # an hour
MEMORY_SETTLED_S: Final = (
    10.0  # after its first work: until then a process takes what models, optimizer and caches need
)
LATE_ANSWERS_KEPT: Final = 256
BURST: Final = 3  # rises in a row, a status each


@dataclass(frozen=True)
class Finding:
    """subject: what of, such as a verifier or a process; may be empty."""

    rule: str
    subject: str
    found: str
    advice: str


@dataclass
class Seen:
    """What the rules look at. Times in seconds since 1970.

    memory: process (with its pid) -> (time, bytes), each ten seconds; bursts: the same for the last statuses, once it has worked.
    verdicts: verifier -> whether each failed. unattested: process -> its failed probe; refused: what it has since it took a version.
    """

    now: float = 0.0

    steps: deque[Event] = field(default_factory=lambda: deque(maxlen=STEPS_KEPT))
    alarms: deque[Event] = field(default_factory=lambda: deque(maxlen=16))
    channels: dict[str, deque[tuple[float, float]]] = field(default_factory=dict)  # a step's least and largest score
    families: dict[str, deque[float]] = field(default_factory=dict)  # a step's mean reward
    verdicts: dict[str, deque[bool]] = field(default_factory=dict)
    memory: dict[tuple[str, int], deque[tuple[float, float]]] = field(default_factory=dict)
    bursts: dict[tuple[str, int], deque[tuple[float, float]]] = field(default_factory=dict)
    late: deque[Event] = field(default_factory=lambda: deque(maxlen=LATE_ANSWERS_KEPT))
    unattested: dict[str, Event] = field(default_factory=dict)
    refused: dict[str, list[Event]] = field(default_factory=dict)
    _pids: dict[str, int] = field(default_factory=dict)
    _worked: dict[str, float] = field(default_factory=dict)  # process -> when its first work was done
    _step: dict[str, list[float]] = field(default_factory=dict)

    def note(self, event: Event) -> bool:
        """Takes an event in. True when the rules may find something new."""
        self.now = max(self.now, seconds(event))
        match event.get("event"):
            case "step.completed":
                self._note_step(event)
            case "group.trained":
                for name, scores in event["channels"].items():
                    self._step.setdefault(name, []).extend(score for score in scores if score is not None)
                return False
            case "group.judged":
                return self._note_verdicts(event)
            case "drift.alarm":
                self.alarms.append(event)
            case "answer.refused":
                self.late.append(event)
            case "weights.attested" | "weights.refused" | "weights.loaded":
                return self._note_weights(event)
            case "work.hops":
                for row in event["rows"]:
                    if row["do"] in ("moved", "finished", "ended"):
                        self._worked.setdefault(row["by"], seconds(event))
                return False
            case "hub.status":
                return self._note_memory(event)
            case _:
                return False
        return True

    def _note_step(self, event: Event) -> None:
        while self.steps and self.steps[-1]["step"] >= event["step"]:  # a roll-back
            self.steps.pop()
        self.steps.append(event)
        for name, scores in self._step.items():
            if scores:
                self.channels.setdefault(name, deque(maxlen=STEPS_KEPT)).append((min(scores), max(scores)))
        self._step = {}
        for label, mean in event["families"].items():
            if mean is not None:
                self.families.setdefault(label, deque(maxlen=STEPS_KEPT)).append(mean)

    def _note_verdicts(self, event: Event) -> bool:
        failing = False
        for verifier, columns in event["verdicts"].items():
            count = max((len(values) for key, values in columns.items() if key != "versions"), default=0)
            failed = [status in ("error", "timeout") for status in columns.get("statuses", ["ok"] * count)]
            self.verdicts.setdefault(verifier, deque(maxlen=VERDICTS_KEPT)).extend(failed)
            failing |= any(failed)
        return failing

    def _note_weights(self, event: Event) -> bool:
        name = f"{event['role']}/{event['replica']}"
        known = name in self.unattested or name in self.refused
        if event["event"] == "weights.refused":
            self.refused.setdefault(name, []).append(event)
        elif event.get("passed") is False:
            self.unattested[name] = event
        else:  # it has proved a version, or taken one
            self.unattested.pop(name, None)
            if event["event"] == "weights.loaded":
                self.refused.pop(name, None)
            return known
        return True

    def _note_memory(self, event: Event) -> bool:
        now = seconds(event)
        rows = [("hub/0", event["pid"], event["rss_bytes"])]
        rows += [(name, w["pid"], w["metrics"].get("rss_bytes")) for name, w in event["workers"].items()]
        grown = False
        for name, pid, size in rows:
            column = self.memory.setdefault((name, pid), deque(maxlen=MEMORY_KEPT))
            if size is not None and (not column or now - column[-1][0] >= MEMORY_EVERY_S):
                column.append((now, float(size)))
                grown = True
        for name, w in event["workers"].items():
            size = w["metrics"].get("rss_bytes")
            if self._pids.setdefault(name, w["pid"]) != w["pid"]:  # another process has taken its place
                self._pids[name] = w["pid"]
                self._worked.pop(name, None)
            if size is not None and now - self._worked.get(name, now) >= MEMORY_SETTLED_S:
                self.bursts.setdefault((name, w["pid"]), deque(maxlen=BURST + 1)).append((now, float(size)))
                grown = True
        live = {(name, pid) for name, pid, _ in rows}
        self.memory = {key: column for key, column in self.memory.items() if key in live}
        self.bursts = {key: column for key, column in self.bursts.items() if key in live}
        return grown

    def last(self, count: int) -> list[Event]:
        """The last steps; none when there are fewer."""
        return list(self.steps)[-count:] if len(self.steps) >= count else []
