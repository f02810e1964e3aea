"""The guard between a verifier and everybody who reads its verdicts: one verdict an item, in time, and a failure is never a score.

Two ways lead to a verifier. `judge` runs in a thread that the guard can stop waiting for: one that is still busy at the deadline
is left behind, and the verifier is not called again before that thread ends, so that no more than one a verifier ever lingers.
Code that never releases the interpreter lock outlives this limit, and the lease's deadline ends it. `judge_async` runs as one
task an item on the verifiers' loop: what is not done at the deadline is cancelled, and the items that were judged keep their
verdicts. Code that blocks that loop costs every waiting verifier of the process its verdicts until it lets go, as time-outs.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import threading
import time
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec

from safeladder.protocol.messages import Verdict
from safeladder.verifiers import loop

if TYPE_CHECKING:
    from safeladder.verifiers.contract import Item, Verifier

_MAX_ERROR = 2_000  # characters of a verifier's error that travel
_LATE = "no verdict within the time limit"
_LOOP_GRACE_S = 1.0  # for the loop to say which of its tasks were late


def judge(verifier: Verifier, items: Sequence[Item], timeout_s: float) -> list[Verdict]:
    """One checked verdict an item, in order. A completion whose generation failed is not judged: status `error`."""
    began = time.monotonic()
    whole = [item for item in items if item.finish in ("stop", "length")]
    within = _together if verifier.waits else _within
    judged = iter(within(verifier, whole, began + timeout_s) if whole else [])
    seconds = (time.monotonic() - began) / max(1, len(whole))
    verdicts = []
    for item in items:
        if item.finish in ("stop", "length"):
            verdict = next(judged)
        else:
            reason = f"the completion ended with {item.finish!r}: there is nothing to judge"
            verdict = without_score(verifier, item, "error", error=reason)
        verdicts.append(msgspec.structs.replace(verdict, seconds=verdict.seconds or seconds))
    return verdicts


def without_score(
    verifier: Verifier,
    item: Item,
    status: Literal["abstain", "timeout", "error"],
    *,
    error: str | None = None,
    rationale: str | None = None,
) -> Verdict:
    """A verdict of a status that carries no score."""
    return Verdict(
        sample=item.sample,
        verifier=verifier.name,
        version=verifier.version,
        principle=verifier.principle,
        status=status,
        target="answer" if item.step is None else "step",
        step=item.step,
        low=verifier.low,
        high=verifier.high,
        rationale=rationale,
        error=None if error is None else error[:_MAX_ERROR],
    )


# ------------------------------------------------------------------------------------------- verifiers that compute


def _within(verifier: Verifier, items: Sequence[Item], deadline: float) -> list[Verdict]:
    call = _Call.start_when_free(verifier, items, deadline)
    if call is None or not call.ended_by(deadline):
        return [without_score(verifier, item, "timeout", error=_LATE) for item in items]
    if call.problem is not None:
        if len(items) > 1:
            return [verdict for item in items for verdict in _within(verifier, [item], deadline)]
        return [without_score(verifier, items[0], "error", error=call.problem)]
    if not isinstance(call.verdicts, list) or len(call.verdicts) != len(items):
        count = len(call.verdicts) if isinstance(call.verdicts, list) else type(call.verdicts).__name__
        reason = f"{len(items)} items were judged, the answer holds {count}"
        return [without_score(verifier, item, "error", error=reason) for item in items]
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


# ---------------------------------------------------------------------------------------------- verifiers that wait


def _together(verifier: Verifier, items: Sequence[Item], deadline: float) -> list[Verdict]:
    """Every item at once, from a thread that is not the loop's."""
    remaining_s = max(0.0, deadline - time.monotonic())
    answer = loop.submit(_each(verifier, items, remaining_s))
    try:
        return answer.result(remaining_s + _LOOP_GRACE_S)
    except concurrent.futures.TimeoutError:
        answer.cancel()
        reason = f"{_LATE}, and the loop of the verifiers did not answer: some judge_async blocks it"
        return [without_score(verifier, item, "timeout", error=reason) for item in items]


async def _each(verifier: Verifier, items: Sequence[Item], timeout_s: float) -> list[Verdict]:
    tasks = [asyncio.create_task(_one(verifier, item)) for item in items]
    try:
        _, late = await asyncio.wait(tasks, timeout=timeout_s)
    finally:
        for task in tasks:
            task.cancel()  # of those that are done, nothing is left to cancel
    return [
        without_score(verifier, item, "timeout", error=_LATE)
        if task in late
        else without_score(verifier, item, "error", error="the verifier cancelled its own task")
        if task.cancelled()
        else task.result()
        for item, task in zip(items, tasks, strict=True)
    ]


async def _one(verifier: Verifier, item: Item) -> Verdict:
    try:
        return _accepted(verifier, item, await verifier.judge_async(item))
    except TimeoutError as error:
        return without_score(verifier, item, "timeout", error=str(error) or _LATE)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - as above; SystemExit would end the loop for all
        return without_score(verifier, item, "error", error=f"{type(error).__name__}: {error}")


# ------------------------------------------------------------------------------------------------- what is accepted


def _accepted(verifier: Verifier, item: Item, verdict: Any) -> Verdict:
    """The verdict as it will travel, or a verdict of status error that says how it breaks the contract."""
    try:
        return _checked(verifier, item, verdict)
    except (_Broken, msgspec.ValidationError, TypeError, OverflowError) as fault:
        return without_score(verifier, item, "error", error=f"verdict refused: {fault}")


class _Broken(ValueError):
    """A verdict that the contract does not allow."""


def _checked(verifier: Verifier, item: Item, verdict: Any) -> Verdict:
    if not isinstance(verdict, Verdict):
        raise _Broken(f"expected a Verdict, got {type(verdict).__name__}")
    if verdict.sample != item.sample:
        raise _Broken(f"it is about sample {verdict.sample}, the item is sample {item.sample}")
    if verdict.step != item.step:
        raise _Broken(f"it is about step {verdict.step}, the item is step {item.step}")
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
