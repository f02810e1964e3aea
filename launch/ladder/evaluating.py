"""An evaluation of one policy of a climb: `launch/evaluation` with the policy's own way of being asked."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from safeladder.launch.config import typed
from safeladder.launch.ladder.gate import Estimate, read_measures
from safeladder.launch.sections import Policy
from safeladder.launch.tasks import located


class Evaluate(Protocol):
    """Evaluates the model `model`, asked as `policy` says, and gives its measures. `out`: a folder that an interrupted one goes on with."""

    def __call__(
        self, name: str, settings: Mapping[str, Any], model: str, policy: Policy, out: Path, stream: TextIO
    ) -> dict[str, Estimate]: ...


def evaluate_policy(
    name: str, settings: Mapping[str, Any], model: str, policy: Policy, out: Path, stream: TextIO
) -> dict[str, Estimate]:
    """Raises ConfigError for settings that `safeladder evaluate` would refuse."""
    from safeladder.launch.evaluation import Settings, evaluate

    raw = copy.deepcopy(dict(settings))
    for key in ("records", "corpus"):
        if key in raw:
            raw[key] = [str(located(source)) for source in raw[key]]
    chosen = typed(raw, Settings, f"evaluations.{name}")
    chosen.policy, chosen.out = model, str(out)
    chosen.system, chosen.prefix, chosen.shots = policy.system, policy.prefix, policy.shots
    chosen.cache = policy.cache
    return read_measures(name, evaluate(chosen, stream).plain())
