"""Constraints: named costs with limits, and the multipliers that hold them there.

A cost is not a negative reward. Maximise J_R subject to J_C,d <= limit_d for every d: the policy follows

    A = (A_R - sum_d lambda_d A_C,d) / (1 + sum_d lambda_d)

and lambda_d grows while the cost lies above its limit and falls while it lies below (Safe RLHF, arXiv 2310.12773, for one
cost; several are ours). The cost is estimated over a sliding window of completions. Stale ones count with their importance
weight, min(product of their ratios, cap), in a self-normalised mean; a completion whose cost is unknown, because a
verifier failed, counts as nothing at all, and a constraint that knows too few completions does not move.

The weight answers for a completion's age when it was trained on, not for the time that it then spends in the window: a window
of w completions at b a step looks back over w / b steps, and the multiplier follows the policy with that delay.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from torch import Tensor

Method = Literal["dual", "multiplicative", "lagrangian", "pid", "fixed"]
Episodes = tuple[Sequence[float], Sequence[float], Sequence[int]]  # costs (NaN: unknown), importance weights, ages

MAX_GROWTH: Final = 50.0  # of ln lambda in one move; e^50 is far beyond every bound and far inside the floats


@dataclass(frozen=True)
class ConstraintOptions:
    """limit: what the mean cost may be, in the cost's unit. init, minimum, maximum: of the multiplier.

    method, with J the estimate of the cost:

    dual            ln lambda += rate * lambda * (J - limit): gradient ascent in log space (arXiv 2310.12773, eq. 13)
    multiplicative  lambda *= exp(rate * (J - limit))
    lagrangian      lambda += rate * (J - limit): PPO-Lagrangian, projected
    pid             lambda = proportional * P + I + derivative * D of J - limit (arXiv 2007.03964): less oscillation. I >= 0
                    begins at init and is cut at maximum, so that it does not wind up (ours); D >= 0 looks at J alone
    fixed           lambda = init: a constant penalty, for comparison

    window: completions that the estimate is over. min_episodes: with fewer known ones nothing moves. delay: steps before the
    first move. fresh_only: completions older than the policy are not counted, in place of being weighted.
    smoothing: of P and D, in [0, 1), 0 is none; derivative_delay: steps over which D looks back.
    acts_on: the cost whose advantages the multiplier weighs, where that is not the one that is limited (Deliberative Searcher, arXiv
    2507.16727: lambda weighs reliability and follows the rate of false certainty). None: the limited one.

    Raises ValueError, naming the key, for values that make no sense.
    """

    limit: float
    method: Method = "dual"
    init: float = 1.0
    rate: float = 0.1
    minimum: float = 1e-3
    maximum: float = 5.0
    window: int = 128
    min_episodes: int = 16
    delay: int = 0
    fresh_only: bool = False
    proportional: float = 0.1
    integral: float = 0.01
    derivative: float = 0.01
    smoothing: float = 0.95
    derivative_delay: int = 10
    acts_on: str | None = None

    def __post_init__(self) -> None:
        methods = get_args(Method)
        checks = [
            ("method", self.method in methods, f"one of {', '.join(methods)}"),
            ("limit", math.isfinite(self.limit), "finite"),
            ("minimum", 0 <= self.minimum <= self.maximum, "in [0, maximum]"),
            ("minimum", self.minimum > 0 or self.method not in ("dual", "multiplicative"), "> 0 for this method"),
            ("init", self.minimum <= self.init <= self.maximum, f"in [{self.minimum}, {self.maximum}]"),
            ("init", math.isfinite(self.init), "finite"),
            ("window", self.window >= 1, ">= 1"),
            ("min_episodes", 1 <= self.min_episodes <= self.window, "in [1, window]"),
            ("delay", self.delay >= 0, ">= 0"),
            ("smoothing", 0 <= self.smoothing < 1, "in [0, 1)"),
            ("derivative_delay", self.derivative_delay >= 1, ">= 1"),
        ]
        for gain in ("rate", "proportional", "integral", "derivative"):
            value = getattr(self, gain)
            checks.append((gain, value >= 0 and math.isfinite(value), "finite and >= 0"))
        for name, holds, asked in checks:
            if not holds:
                raise ValueError(f"{name} must be {asked}, not {getattr(self, name)}")


@dataclass(frozen=True)
class Estimate:
    """cost: weighted mean; error: its standard error; episodes: how many known costs it is over. NaN without any.

    The standard error takes completions for independent. Those of one prompt are alike, so the true one is larger.
    """

    cost: float
    error: float
    episodes: int


class Constraint:
    """One named cost, its window and its multiplier."""

    def __init__(self, options: ConstraintOptions) -> None:
        self.options = options
        self.multiplier = options.init
        self._window: deque[tuple[float, float]] = deque(maxlen=options.window)  # cost, weight
        self._integral = options.init
        self._error = 0.0
        self._cost = 0.0
        self._past: deque[float] = deque([0.0], maxlen=options.derivative_delay)

    def observe(self, costs: Sequence[float], weights: Sequence[float], ages: Sequence[int]) -> int:
        """Puts the completions of a step into the window, and says how many; a cost that is not finite is unknown.

        Raises ValueError for columns of different lengths, or a weight that is negative or not finite, and then nothing
        has changed.
        """
        episodes = list(zip(costs, weights, ages, strict=True))
        odd = [weight for weight in weights if not (math.isfinite(weight) and weight >= 0)]
        if odd:
            raise ValueError(f"importance weights must be finite and >= 0, not {odd[0]}")
        counted = [
            (float(cost), 1.0 if age == 0 else float(weight))
            for cost, weight, age in episodes
            if math.isfinite(cost) and not (self.options.fresh_only and age > 0)
        ]
        self._window.extend(counted)
        return len(counted)

    def estimate(self) -> Estimate:
        """The window's mean cost J = sum w c / sum w, and sqrt(sum w^2 (c - J)^2) / sum w."""
        total = math.fsum(weight for _, weight in self._window)
        if total <= 0:
            return Estimate(math.nan, math.nan, 0)
        cost = math.fsum(cost * weight for cost, weight in self._window) / total
        squares = math.fsum((weight * (value - cost)) ** 2 for value, weight in self._window)
        return Estimate(cost, math.sqrt(squares) / total, len(self._window))

    def move(self, step: int) -> None:
        """One update of the multiplier, unless it is too early or too little is known."""
        found = self.estimate()
        if step > self.options.delay and found.episodes >= self.options.min_episodes:
            moved = self.next_multiplier(found.cost)
            self.multiplier = min(max(moved, self.options.minimum), self.options.maximum)

    def next_multiplier(self, cost: float) -> float:
        """What the method makes of the multiplier for this cost, before the bounds."""
        options, error = self.options, cost - self.options.limit
        if options.method == "dual":
            return self.multiplier * math.exp(min(options.rate * self.multiplier * error, MAX_GROWTH))
        if options.method == "multiplicative":
            return self.multiplier * math.exp(min(options.rate * error, MAX_GROWTH))
        if options.method == "lagrangian":
            return self.multiplier + options.rate * error
        if options.method == "pid":
            return self._pid(cost, error)
        return self.multiplier

    def _pid(self, cost: float, error: float) -> float:
        options, kept = self.options, self.options.smoothing
        self._integral = min(max(0.0, self._integral + options.integral * error), options.maximum)  # no wind-up
        self._error = kept * self._error + (1 - kept) * error
        self._cost = kept * self._cost + (1 - kept) * cost
        rise = max(0.0, self._cost - self._past[0])
        self._past.append(self._cost)
        return options.proportional * self._error + self._integral + options.derivative * rise

    def state(self) -> dict[str, Any]:
        """Plain JSON; `restore` goes on from it bit for bit."""
        return {
            "multiplier": self.multiplier,
            "window": [list(episode) for episode in self._window],
            "pid": [self._integral, self._error, self._cost, *self._past],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.multiplier = state["multiplier"]
        self._window = deque(((c, w) for c, w in state["window"]), maxlen=self.options.window)
        self._integral, self._error, self._cost, *past = state["pid"]
        self._past = deque(past, maxlen=self.options.derivative_delay)


class Constraints:
    """All constraints of a run, by the name of their cost."""

    def __init__(self, options: Mapping[str, ConstraintOptions]) -> None:
        self._constraints = {name: Constraint(chosen) for name, chosen in sorted(options.items())}
        self.version = 0  # how often `update` was called: the version of the multipliers

    def multipliers(self) -> dict[str, float]:
        """The multipliers for the next step."""
        return {name: constraint.multiplier for name, constraint in self._constraints.items()}

    def acting(self) -> dict[str, str]:
        """Constraint -> the cost that its multiplier weighs."""
        return {name: constraint.options.acts_on or name for name, constraint in self._constraints.items()}

    def combine(self, advantages: Tensor, cost_advantages: Mapping[str, Tensor]) -> Tensor:
        """(A_R - sum lambda_d A_C,d) / (1 + sum lambda_d); all of one shape. The division keeps the scale of a step."""
        multipliers = self.multipliers()
        penalty = sum(multipliers[name] * cost_advantages[name] for name in multipliers)
        return (advantages - penalty) / (1.0 + math.fsum(multipliers.values()))

    def update(self, step: int, episodes: Mapping[str, Episodes]) -> None:
        """Takes the completions of step `step` (from 1) and moves every multiplier about which it says something new.

        A multiplier whose verifier was silent in this step stays: moving it again by what the window holds from before
        would let it run away on one old measurement (ours).

        Raises KeyError for a cost that is not given, before anything has changed.
        """
        missing = [name for name in self._constraints if name not in episodes]
        if missing:
            raise KeyError(f"no costs for the constraint {', '.join(missing)}; given: {', '.join(sorted(episodes))}")
        for name, constraint in self._constraints.items():
            if constraint.observe(*episodes[name]):
                constraint.move(step)
        self.version += 1

    def report(self) -> dict[str, dict[str, Any]]:
        """For the log, per constraint: multiplier, cost and its standard error, limit, margin = limit - cost, episodes,
        and whether the multiplier stands at a bound. None where nothing is known."""
        rows = {}
        for name, constraint in self._constraints.items():
            found, options = constraint.estimate(), constraint.options
            known = found.episodes > 0
            rows[name] = {
                "multiplier": round(constraint.multiplier, 6),
                "cost": round(found.cost, 6) if known else None,
                "error": round(found.error, 6) if known else None,
                "limit": options.limit,
                "margin": round(options.limit - found.cost, 6) if known else None,
                "episodes": found.episodes,
                "saturated": constraint.multiplier in (options.minimum, options.maximum) and options.method != "fixed",
            }
        return rows

    def state(self) -> dict[str, Any]:
        """Plain JSON of everything that moves."""
        return {"version": self.version, "by_name": {name: c.state() for name, c in self._constraints.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`; a constraint that is new begins at its init, one that is gone is left out."""
        self.version = state["version"]
        for name, constraint in self._constraints.items():
            if name in state["by_name"]:
                constraint.restore(state["by_name"][name])
