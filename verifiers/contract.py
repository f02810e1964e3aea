"""The contract of a verifier, ours or a user's own, and the guard that holds it to the contract.

A minimal verifier is one class:

    class Polite(Verifier):
        name, version, principle = "polite", "1", "value"

        def judge_one(self, item: Item) -> Verdict:
            return self.ok(item, float("please" in item.answer.lower()))

named in `cluster.yaml` as `my_package.my_module:Polite`. One that works on batches overrides `judge` instead.

`run` is the only way in which a verifier is called. Whatever the verifier does, each item gets one verdict, and only a finite
score within the declared range ever comes out as a score: everything else is a status.
"""

from __future__ import annotations

import math
import threading
import time
from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any, ClassVar, Literal

import msgspec

from safeladder.protocol.messages import Record, Verdict

CLOSE = "</think>"
OPEN = "<think>"
_MAX_ERROR = 2_000  # characters of a verifier's error that travel


@dataclass(frozen=True)
class Item:
    """One completion to judge.

    `text` is all that the assistant said: the prefix it was given and what it wrote. `sample` is the index into the group's
    completions. `language` is the record's unless given.
    """

    record: Record
    text: str
    sample: int = 0
    finish: str = "stop"  # stop, length, abort, error
    language: str = ""

    def __post_init__(self) -> None:
        if not self.language:
            object.__setattr__(self, "language", self.record.language)

    @cached_property
    def answer(self) -> str:
        """What follows the last `</think>`, or the whole text where there is none; no space around it."""
        return self.text.rpartition(CLOSE)[2].strip()

    @cached_property
    def thought(self) -> str:
        """What stands before the last `</think>`, without the first `<think>`; empty where no thought was closed."""
        before = self.text.rpartition(CLOSE)[0]
        return before.partition(OPEN)[2].strip() if OPEN in before else before.strip()


class Verifier(ABC):
    """Judges completions. Subclasses set `name`, `version`, `principle` and write `judge_one` or `judge`.

    `low` and `high` bound the score. `version` changes whenever the same text may be judged otherwise. `Options` is a dataclass,
    read strictly from the configuration by `registry.create`. A verifier keeps no state between calls: judging the same
    item again gives the same verdict.
    """

    name: ClassVar[str]
    version: str
    principle: ClassVar[str]  # safety, value, knowledge, helpfulness, rules, process
    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    @dataclass(frozen=True)
    class Options:
        """No options."""

    def __init__(self, options: Any = None) -> None:
        self.options: Any = self.Options() if options is None else options

    def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict an item, in the items' order."""
        return [self.judge_one(item) for item in items]

    def judge_one(self, item: Item) -> Verdict:
        """The verdict on one item."""
        raise NotImplementedError(f"{type(self).__name__} overrides neither judge nor judge_one")

    def ok(
        self,
        item: Item,
        score: float,
        label: str | None = None,
        *,
        confidence: float | None = None,
        rationale: str | None = None,
        target: Literal["answer", "thought", "step"] = "answer",
    ) -> Verdict:
        """A verdict with a score in [`low`, `high`]."""
        return Verdict(
            sample=item.sample,
            verifier=self.name,
            version=self.version,
            principle=self.principle,
            status="ok",
            target=target,
            label=label,
            score=score,
            low=self.low,
            high=self.high,
            confidence=confidence,
            rationale=rationale,
        )

    def abstain(self, item: Item, reason: str) -> Verdict:
        """This verifier has nothing to say of this item, and why."""
        return _without_score(self, item, "abstain", rationale=reason)


def run(verifiers: Sequence[Verifier], items: Sequence[Item], timeout_s: float) -> list[Verdict]:
    """All verdicts of all verifiers: for each verifier, one an item, in the items' order. Never raises for what a verifier does.

    Each verifier has `timeout_s` seconds for all its items. A batch that raises is judged again item by item, so that one item
    that a verifier cannot bear costs the others nothing. Status `error`: an exception, or a verdict that breaks the
    contract. Status `timeout`: no answer in time; the thread that is still busy is left behind, and the verifier is
    not called again before that thread ends, so that no more than one a verifier ever lingers.

    The limit is kept by a thread: code that never releases the interpreter lock outlives it, and the lease's deadline ends it.
    """
    return [verdict for verifier in verifiers for verdict in _judge(verifier, items, timeout_s)]


def _judge(verifier: Verifier, items: Sequence[Item], timeout_s: float) -> list[Verdict]:
    began = time.monotonic()
    whole = [item for item in items if item.finish in ("stop", "length")]
    judged = iter(_within(verifier, whole, began + timeout_s) if whole else [])
    seconds = (time.monotonic() - began) / max(1, len(whole))
    verdicts = []
    for item in items:
        if item.finish in ("stop", "length"):
            verdict = next(judged)
        else:
            reason = f"the completion ended with {item.finish!r}: there is nothing to judge"
            verdict = _without_score(verifier, item, "error", error=reason)
        verdicts.append(msgspec.structs.replace(verdict, seconds=verdict.seconds or seconds))
    return verdicts


def _within(verifier: Verifier, items: Sequence[Item], deadline: float) -> list[Verdict]:
    call = _Call.start_when_free(verifier, items, deadline)
    if call is None or not call.ended_by(deadline):
        reason = "no verdict within the time limit"
        return [_without_score(verifier, item, "timeout", error=reason) for item in items]
    if call.problem is not None:
        if len(items) > 1:
            return [verdict for item in items for verdict in _within(verifier, [item], deadline)]
        return [_without_score(verifier, items[0], "error", error=call.problem)]
    if not isinstance(call.verdicts, list) or len(call.verdicts) != len(items):
        count = len(call.verdicts) if isinstance(call.verdicts, list) else type(call.verdicts).__name__
        reason = f"{len(items)} items were judged, the answer holds {count}"
        return [_without_score(verifier, item, "error", error=reason) for item in items]
    return [_accepted(verifier, item, verdict) for item, verdict in zip(items, call.verdicts, strict=True)]


class _Call(threading.Thread):
    """One call of `judge` in a thread of its own, which a caller can stop waiting for."""

    _abandoned: ClassVar[list[_Call]] = []
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, verifier: Verifier, items: Sequence[Item]) -> None:
        super().__init__(name=f"verifier-{getattr(verifier, 'name', '?')}", daemon=True)
        self.verifier, self.items = verifier, items
        self.verdicts: Any = None
        self.problem: str | None = "the call ended without an answer"

    @classmethod
    def start_when_free(cls, verifier: Verifier, items: Sequence[Item], deadline: float) -> _Call | None:
        """The call, started once no abandoned call of the same verifier is at work; None when that lasts too long."""
        with cls._lock:
            cls._abandoned[:] = [call for call in cls._abandoned if call.is_alive()]
            ahead = [call for call in cls._abandoned if call.verifier is verifier]
        for call in ahead:
            call.join(max(0.0, deadline - time.monotonic()))
            if call.is_alive():
                return None
        call = cls(verifier, items)
        call.start()
        return call

    def run(self) -> None:
        try:
            self.verdicts = self.verifier.judge(self.items)
        except Exception as error:  # noqa: BLE001 - the boundary to code that is not ours; it is reported, never scored
            self.problem = f"{type(error).__name__}: {error}"
        else:
            self.problem = None

    def ended_by(self, deadline: float) -> bool:
        self.join(max(0.0, deadline - time.monotonic()))
        if not self.is_alive():
            return True
        with self._lock:
            self._abandoned.append(self)
        return False


def _accepted(verifier: Verifier, item: Item, verdict: Any) -> Verdict:
    """The verdict as it will travel, or a verdict of status error that says how it breaks the contract."""
    try:
        return _checked(verifier, item, verdict)
    except (_Broken, msgspec.ValidationError, TypeError, OverflowError) as fault:
        return _without_score(verifier, item, "error", error=f"verdict refused: {fault}")


class _Broken(ValueError):
    """A verdict that the contract does not allow."""


def _checked(verifier: Verifier, item: Item, verdict: Any) -> Verdict:
    if not isinstance(verdict, Verdict):
        raise _Broken(f"expected a Verdict, got {type(verdict).__name__}")
    if verdict.sample != item.sample:
        raise _Broken(f"it is about sample {verdict.sample}, the item is sample {item.sample}")
    if verdict.verifier != verifier.name:
        raise _Broken(f"it is signed {verdict.verifier!r}, the verifier is {verifier.name!r}")
    low, high = _number("low", verdict.low), _number("high", verdict.high)
    confidence = None if verdict.confidence is None else _number("confidence", verdict.confidence)
    score: float | None = None
    if verdict.status == "ok":
        score = _number("score", verdict.score)
        if not low <= score <= high:
            raise _Broken(f"score {score} is outside [{low}, {high}]")
    elif verdict.score is not None:
        raise _Broken(f"status {verdict.status!r} carries a score")
    plain = msgspec.structs.replace(verdict, score=score, low=low, high=high, confidence=confidence)
    # Over the wire and back: what the hub would refuse is refused here, where the verifier's name is known.
    return msgspec.msgpack.decode(msgspec.msgpack.encode(plain), type=Verdict)


def _number(field: str, value: Any) -> float:
    """A finite Python float; numpy's scalars are accepted, True is not a number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise _Broken(f"{field} is {value!r}, not a number")
    number = float(value)
    if not math.isfinite(number):
        raise _Broken(f"{field} is {number}")
    return number


def _without_score(
    verifier: Verifier,
    item: Item,
    status: Literal["abstain", "timeout", "error"],
    *,
    error: str | None = None,
    rationale: str | None = None,
) -> Verdict:
    return Verdict(
        sample=item.sample,
        verifier=verifier.name,
        version=verifier.version,
        principle=verifier.principle,
        status=status,
        low=verifier.low,
        high=verifier.high,
        rationale=rationale,
        error=None if error is None else error[:_MAX_ERROR],
    )
