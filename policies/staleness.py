"""How old a group may be when it is trained: four policies that admit, choose and wait so that none is older than eta.

Names. A *step* is one optimizer step, counted from 0 in the surviving history; B groups make a batch; eta is the bound, in steps; eta = 0
is synchronous training. Groups are numbered in order of admission. A number is *accounted for* once its group is in a batch or dropped
for good; *outstanding* are the numbers admitted and not accounted for. The learner announces its step, its weights' version and how many
numbers are accounted for, all in one message.

What all four share
-------------------
(a) The feeder admits number q only while q - accounted < `limit`, as last announced. It may learn late; then it admits less.
(b) A group carries the version announced with the message under which it was admitted, and no older weights may sample it. Let b be
    the step of that message. A group trained at step t has then no token older than t - b.
(c) So of the numbers below q, fewer than `limit` were outstanding when step b was announced.
It is left to each policy to see to it that t <= b + eta. Dropped groups only help: they are made up for by admission (a).

    policy    limit                       next batch                               too old
    pace      (eta + 1) B                 the B lowest numbers, in order           never
    windowed  (eta + 1) B - (W - 1)       lowest first; at most W - 1 may pass     never
    wait      (eta + 1) B                 first come, unless that makes a          never
                                          later batch overfull: then wait
    drop      max_in_flight               first come                               dropped, made up for

No limit is above `max_in_flight`, which bounds memory and leases. "Never" means in a history without a fault. A learner that goes back
to a checkpoint finds groups admitted before: those that got too old meanwhile are sampled anew and keep their place.

Pace and windowed: the proof
----------------------------
While number q is missing, only numbers below q + W are chosen, and of what is there the lower ones go first. So at most W - 1 higher
numbers are trained before q; by (c) at most limit - 1 lower ones are, counted from step b on. If q is trained at step t, then the
(t - b) B groups of the steps b .. t - 1 are among these:

    (t - b) B <= (limit - 1) + (W - 1) < (eta + 1) B,    hence    t - b <= eta.                                                QED

In other words: being passed costs a group at most ceil((W - 1) / B) steps, and admission pays for them in advance. `pace` is W = 1. A
batch must fit below the limit, so W <= eta B + 1: with eta = 0 there is nothing to pass.

Wait: the proof
---------------
Look at the `limit` lowest numbers not accounted for, admitted or not; only they may be chosen. By (a) a number cannot be admitted before
it is one of them, so the step at which it becomes one, plus eta, is a deadline that holds whatever happens in between. Deadlines never
fall with the number. Let D(k) be how many of them have a deadline of s + k or less when step s is to be made.
Claim: D(k) <= (k + 1) B for k = 0 .. eta, at every step. At the start only D(eta) is not 0, and limit <= (eta + 1) B. Step s chooses at
least D(k) - k B among those with a deadline of s + k or less, for every k: they are nested, and none asks for more than B, so a batch
does. Then at s + 1 again D(k) <= (k + 1) B, and what becomes visible anew has the latest deadline. D(0) <= B says that everything due
fits into the batch, and it is in it.                                                                                          QED
Numbers that will never be admitted, because the run or the data end, have the latest deadlines of all; as long as B groups are left to
train, none of them is ever asked for.

Rollback: it lowers the step and returns what was admitted since. Numbers of versions are not reused, so across it a difference of
versions can exceed the difference of steps. `ledger.VersionCounter.step_of` tells the step of a version.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from safeladder.policies.arrivals import Arrivals

Name = Literal["pace", "drop", "wait", "windowed"]


class Bounds(Protocol):
    """The section `staleness` of a configuration."""

    policy: Name
    eta: int
    max_in_flight: int
    window: int | None


def create(bounds: Bounds, batch: int) -> StalenessPolicy:
    """The policy that a configuration names. Raises ValueError, with the key to change, for one that could not move."""
    eta, at_most = bounds.eta, bounds.max_in_flight
    if eta < 0 or batch < 1:
        raise ValueError(f"eta must be >= 0 and batch >= 1, not {eta} and {batch}")
    if at_most < batch:
        raise ValueError(f"max_in_flight is {at_most}, so that a batch of {batch} groups can never come together")
    window = bounds.window
    if bounds.policy != "windowed" and window is not None:
        raise ValueError(f"window is {window}, but policy {bounds.policy!r} has none; only 'windowed' has")
    match bounds.policy:
        case "drop":
            return Drop(eta, batch, at_most)
        case "wait":
            return Wait(eta, batch, min(at_most, (eta + 1) * batch))
        case "pace":
            window = 1
        case "windowed":
            window = eta * batch // 2 + 1 if window is None else window  # half of what eta leaves room for
            if not 1 <= window <= eta * batch + 1:
                most = eta * batch + 1
                raise ValueError(f"window is {window}; it must be between 1 and eta * batch + 1 = {most}")
    return Windowed(eta, batch, min(at_most, (eta + 1) * batch - (window - 1)), window)


@dataclass
class StalenessPolicy(ABC):
    """eta: largest age at the gradient step, in steps. batch: groups a step. limit: most numbers outstanding at once."""

    eta: int
    batch: int
    limit: int

    @property
    def drops(self) -> bool:
        """Whether a group that is too old is dropped; else it is a fault, or the rest of a rollback."""
        return False

    def capacity(self, running: int) -> int:
        """How many groups the feeder may admit now, >= 0. running: admitted and not accounted for, as last announced.

        AReaL's capacity, min(max_in_flight - running, (eta + step + 1) B - (accepted + running)), arXiv 2505.24298 eq. 3,
        in which accepted = step B.
        """
        return max(0, self.limit - running)

    def choose(self, arrivals: Arrivals[Any], step: int) -> list[int] | None:
        """Numbers of the batch for `step`, rising; None while it has to be waited for. Changes nothing in `arrivals`.

        The last batch of a stream that has ended may be short. `Wait` counts deadlines from the first call that sees a
        number: ask after every change to `arrivals`, before the change is announced.
        """
        chosen = self._pick(arrivals, step)
        if chosen is None and arrivals.complete and 0 < len(arrivals) < self.batch:
            chosen = arrivals.numbers()
        return None if chosen is None else sorted(chosen)

    @abstractmethod
    def _pick(self, arrivals: Arrivals[Any], step: int) -> list[int] | None:
        """A whole batch, or None."""


@dataclass
class Windowed(StalenessPolicy):
    """In order of admission, except that up to `window` - 1 groups may pass one that is missing. `pace` is window 1."""

    window: int = 1

    def _pick(self, arrivals: Arrivals[Any], step: int) -> list[int] | None:
        chosen: list[int] = []
        missing: int | None = None
        number = arrivals.cursor
        while len(chosen) < self.batch and (missing is None or number < missing + self.window):
            if number in arrivals:
                chosen.append(number)
            elif missing is None and not arrivals.accounted_for(number):
                missing = number
            number += 1
        return chosen if len(chosen) == self.batch else None


@dataclass
class Drop(StalenessPolicy):
    """First come, first trained. The learner drops what is too old before it asks."""

    @property
    def drops(self) -> bool:
        return True

    def _pick(self, arrivals: Arrivals[Any], step: int) -> list[int] | None:
        there = arrivals.numbers()
        return there[: self.batch] if len(there) >= self.batch else None


@dataclass
class Wait(StalenessPolicy):
    """First come, first trained, but what would be too old one step later, or leave too much that would be, is waited for."""

    _deadlines: dict[int, int] = field(default_factory=dict)

    def _pick(self, arrivals: Arrivals[Any], step: int) -> list[int] | None:
        visible = arrivals.outstanding(self.limit)
        self._deadlines = {number: self._deadlines.get(number, step + self.eta) for number in visible}
        there = [number for number in arrivals.numbers() if number in self._deadlines]
        chosen: dict[int, None] = {}
        for slack in range(self.eta + 1):
            due = sum(deadline <= step + slack for deadline in self._deadlines.values()) - slack * self.batch
            ready = [number for number in there if self._deadlines[number] <= step + slack and number not in chosen]
            short = due - sum(self._deadlines[number] <= step + slack for number in chosen)
            if short > len(ready):
                return None
            chosen.update(dict.fromkeys(ready[: max(0, short)]))
        chosen.update(dict.fromkeys([number for number in there if number not in chosen][: self.batch - len(chosen)]))
        return list(chosen) if len(chosen) == self.batch else None


def staleness(versions: Sequence[Sequence[int] | NDArray[np.int32]], learner_version: int) -> list[int]:
    """Age of each sample in versions: the learner's version minus that of the sample's oldest token.

    versions: for each sample, the version of each token. A sample without tokens has age 0.
    """
    return [max(0, learner_version - int(min(tokens))) if len(tokens) else 0 for tokens in versions]
