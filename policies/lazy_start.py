"""When a length term begins: only after the curves that must not suffer from it have become flat.

A penalty on length from the first step trades correctness for shortness while correctness is still to be had. Waiting
is known from the lazy length penalty (arXiv 2505.12284) and asked for by CALE; how flatness is measured here is ours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


class LazyStart:
    """The factor in [0, 1] by which a length term's coefficient is multiplied, step by step.

    It is 0 until every watched curve is flat, then grows by 1/ramp_steps a step to 1, and never goes back. A curve is
    flat when its last `window` values are there and the means of their older and newer half differ by no more than the
    curve's tolerance. A value that is NaN (nothing was measured in that step) is skipped. Not safe for several threads.
    """

    def __init__(
        self, tolerances: Mapping[str, float], *, window: int = 40, ramp_steps: int = 40, min_steps: int = 0
    ) -> None:
        """tolerances: curve -> how much it may move between half windows, in the curve's own unit.

        window: values, at least 2 and even. ramp_steps: 0 goes to 1 at once. min_steps: the ramp begins no earlier; it
        keeps a policy that has not begun to learn, whose curves are flat too, from being taken for a finished one.
        Raises ValueError, with the name of what is wrong.
        """
        if not tolerances:
            raise ValueError("tolerances must name at least one curve to watch")
        for name, tolerance in tolerances.items():
            if not (math.isfinite(tolerance) and tolerance >= 0):
                raise ValueError(f"the tolerance of {name} must be a finite number >= 0, not {tolerance}")
        if window < 2 or window % 2:
            raise ValueError(f"window must be even and at least 2, not {window}")
        if ramp_steps < 0 or min_steps < 0:
            raise ValueError(f"ramp_steps and min_steps must not be negative: {ramp_steps}, {min_steps}")
        self._tolerances = dict(tolerances)
        self._window = window
        self._ramp_steps = ramp_steps
        self._min_steps = min_steps
        self._steps = 0
        self._started: int | None = None
        self._curves: dict[str, list[float]] = {name: [] for name in self._tolerances}

    @property
    def factor(self) -> float:
        """The factor for the next step, in [0, 1]."""
        if self._started is None:
            return 0.0
        since = self._steps - self._started
        return 1.0 if since >= self._ramp_steps else since / self._ramp_steps

    def update(self, values: Mapping[str, float]) -> float:
        """Takes the step's value of every watched curve, others are ignored; returns the factor for the next step.

        Raises ValueError when a watched curve is missing or infinite; then nothing has changed.
        """
        missing = [name for name in self._curves if name not in values]
        if missing:
            raise ValueError(f"the curves {', '.join(missing)} are watched and were not given; given: {sorted(values)}")
        infinite = [name for name in self._curves if math.isinf(values[name])]
        if infinite:
            raise ValueError(f"the curves {', '.join(infinite)} are infinite")
        self._steps += 1
        if self._started is None:
            for name, curve in self._curves.items():
                if not math.isnan(values[name]):
                    curve.append(float(values[name]))
                del curve[: -self._window]
            if self._steps >= self._min_steps and all(self._flat(name) for name in self._curves):
                self._started = self._steps
                self._curves = {name: [] for name in self._tolerances}  # they are not asked again
        return self.factor

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on exactly here, as plain JSON. The options are not part of it."""
        state: dict[str, Any] = {"steps": self._steps, "started": self._started, "curves": self._curves}
        return dict(json.loads(json.dumps(state)))  # a copy that later updates do not reach

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state()`. Raises ValueError when it watched other curves than this one does."""
        curves: dict[str, list[float]] = {name: [float(v) for v in curve] for name, curve in state["curves"].items()}
        if curves.keys() != self._tolerances.keys():
            raise ValueError(f"the state watched {sorted(curves)}, the options name {sorted(self._tolerances)}")
        self._steps = int(state["steps"])
        self._started = None if state["started"] is None else int(state["started"])
        self._curves = {name: curves[name] for name in self._tolerances}

    def _flat(self, name: str) -> bool:
        curve, half = self._curves[name], self._window // 2
        if len(curve) < self._window:
            return False
        return abs(math.fsum(curve[half:]) - math.fsum(curve[:half])) <= self._tolerances[name] * half
