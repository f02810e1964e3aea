"""The figures of an optimizer step under the names that trackers of experiments show: `group/figure`."""

from __future__ import annotations

from typing import Final

from safeladder.launch.events import Event
from safeladder.launch.export.sink import numbers

TIME: Final = ("step_s", "wait_s", "publish_s", "tokens_per_s")
OFF_POLICY: Final = (
    *("staleness_max", "age_mean", "age_max", "ess", "behaviour_kl", "mismatch", "log_ratio_max", "perplexity_ratio"),
    *("chi2_token", "chi2_sequence", "above", "below", "truncated", "masked", "selection_bias"),
)
REWARD: Final = ("reward_mean", "reward_std", "unsafe_rate", "truncated_ratio")
_PLACE: Final = ("step", "steps", "version", "published", "mono_ns", "replica", "pid", "seq")


def scalars(event: Event) -> tuple[int, dict[str, float]] | None:
    """(step, figures) of a `step.completed` of a run's learner; None for any other event. What was not measured is left out."""
    if event.get("event") != "step.completed" or "kind" in event:  # a verifier's training
        return None
    found = {f"{_group(name)}/{name}": value for name, value in numbers(event).items() if name not in _PLACE}
    for group, field in (("family", "families"), ("score", "channels"), ("dropped", "dropped"), ("seconds", "seconds")):
        found |= {f"{group}/{name}": value for name, value in numbers(event.get(field) or {}).items()}
    for name, figures in (event.get("constraints") or {}).items():
        found |= {f"constraint/{name}/{figure}": value for figure, value in numbers(figures).items()}
    return int(event["step"]), found


def _group(name: str) -> str:
    return (
        "time" if name in TIME else "off_policy" if name in OFF_POLICY else "reward" if name in REWARD else "training"
    )
