"""Events in the shapes that the processes of a run write, held to the catalogue, for tests of what reads them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from safeladder.launch.catalogue import problems

Event = dict[str, Any]
START = 1_800_000_000.0


def line(event: str, at: float = 0.0, role: str = "hub", pid: int = 1, **fields: Any) -> Event:
    """A line of a log, `at` seconds after START. It has every field that the catalogue asks for, or this fails."""
    ts = datetime.fromtimestamp(START + at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    head = {"ts": ts, "mono_ns": int(at * 1e9), "level": "info", "event": event, "run": "run", "role": role}
    made = {**head, "replica": 0, "boot": "b", "pid": pid, "seq": 0, **fields}
    assert list(problems(made)) == []
    return made


def step(number: int, at: float = 0.0, **changed: Any) -> Event:
    """A `step.completed` of a healthy run."""
    floats = (
        "wait_s publish_s step_s tokens_per_s reward_mean reward_std unsafe_rate truncated_ratio learning_rate loss policy_loss kl "
        "entropy grad_norm clip_fraction age_mean behaviour_kl mismatch log_ratio_max chi2_token chi2_sequence above below truncated "
        "masked selection_bias"
    )
    ints = (
        "uninformative unjudged_groups unjudged_samples age_max groups sequences valid_sequences zero_spread_groups tokens "
        "trained_tokens prompt_tokens packs updates"
    )
    fields: dict[str, Any] = dict.fromkeys(floats.split(), 0.0) | dict.fromkeys(ints.split(), 0)
    fields |= {
        "step": number,
        "steps": 100,
        "version": number - 1,
        "published": number,
        "staleness": [0],
        "staleness_max": 0,
    }
    fields |= {"dropped": {}, "families": {"safety": 0.01 * number}, "channels": {}, "samples": 64, "filtered": {}}
    fields |= {"constraints": {}, "engine_drift": None, "seconds": {}, "ess": 1.0, "perplexity_ratio": 1.0}
    return line("step.completed", at, "learner", **{**fields, **changed})


def trained(number: int, channels: dict[str, list[float | None]], at: float = 0.0) -> Event:
    count = len(next(iter(channels.values())))
    fields: dict[str, Any] = {"rewards": [0.0] * count, "advantages": [0.0] * count, "corrections": [1.0] * count}
    fields |= {
        "id": f"{number:08d}-task",
        "step": number,
        "published": number,
        "staleness": 0,
        "loss_weights": [0.1] * count,
    }
    return line("group.trained", at, "learner", channels=channels, **fields)


def worker(queue: str, **changed: Any) -> dict[str, Any]:
    """An idle worker as `hub.status` shows it."""
    fields: dict[str, Any] = {
        "queues": [queue],
        "credit": 4,
        "leases": 0,
        "heard_s": 0.3,
        "progress_s": 0.5,
        "busy_s": 0.0,
    }
    return {**fields, "pid": 7, "metrics": {"rss_bytes": 1e9}, **changed}


def status(at: float = 0.0, done: int = 10, **changed: Any) -> Event:
    """A `hub.status` in which everybody is there and nobody has anything to do, but for what is `changed`."""
    workers = {f"{queue}/0": worker(queue) for queue in ("feeder", "generator", "rules", "learner")}
    fields: dict[str, Any] = {"hub_boot": 1, "waiting": {}, "leased": 0, "dead": 0, "finished": done, "oldest": []}
    fields |= {"counters": {"accepted": done, "done": done}, "rss_bytes": 50_000_000}
    return line("hub.status", at, **{**fields, **changed, "workers": {**workers, **changed.get("workers", {})}})
