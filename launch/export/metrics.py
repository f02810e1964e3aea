"""The run's events as Prometheus metrics. `TABLE` is all there is, by the rules for names: base units, `_total` for counters.

A counter counts what the logs have told since the reader began: from the beginning with `safeladder metrics`, from its own start
with a resumed launcher. `docs/exports.md` holds the table; the dashboard beside it uses these names; a test holds both to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import prometheus_client

from safeladder.launch.config import ConfigError
from safeladder.launch.events import Event, seconds
from safeladder.launch.export.leases import Leases
from safeladder.launch.export.sink import numbers

SECONDS: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
AGES: Final = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)


@dataclass(frozen=True)
class Metric:
    """name: without the prefix `safeladder_`, and for a counter without `_total`. buckets: of a histogram."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = SECONDS

    @property
    def shown(self) -> str:
        """As Prometheus shows it."""
        return f"safeladder_{self.name}{'_total' if self.kind == 'counter' else ''}"


# field of `step.completed` -> metric
FIGURES: Final = {
    "step": Metric("step", "gauge", "optimizer steps made"),
    "published": Metric("weight_version", "gauge", "weight version published last"),
    "reward_mean": Metric("reward_mean", "gauge", "mean reward of the step's judged samples"),
    "unsafe_rate": Metric("unsafe_ratio", "gauge", "share of judged samples called unsafe"),
    "truncated_ratio": Metric("length_limited_ratio", "gauge", "share of completions that ended by length"),
    "kl": Metric("reference_kl_nats", "gauge", "KL divergence to the reference, per token"),
    "entropy": Metric("entropy_nats", "gauge", "mean -ln pi of sampled tokens"),
    "ess": Metric("effective_sample_ratio", "gauge", "effective share of the tokens under the importance weights"),
    "mismatch": Metric("mismatch_nats", "gauge", "KL(behaviour || proximal), k3"),
    "clip_fraction": Metric("clipped_ratio", "gauge", "share of tokens that the objective let nothing through of"),
    "masked": Metric("masked_ratio", "gauge", "share of tokens whose weight is 0"),
    "truncated": Metric("capped_ratio", "gauge", "share of tokens whose weight was lowered to the cap"),
    "loss": Metric("loss", "gauge", "loss of the step"),
    "grad_norm": Metric("gradient_norm", "gauge", "before clipping"),
    "learning_rate": Metric("learning_rate", "gauge", "of the step"),
}
TABLE: Final = (
    *FIGURES.values(),
    Metric("family_reward_mean", "gauge", "mean reward by label of the tasks", ("family",)),
    Metric("verifier_score_mean", "gauge", "mean score by verifier", ("verifier",)),
    Metric("constraint_multiplier", "gauge", "its Lagrange multiplier", ("constraint",)),
    Metric("constraint_margin", "gauge", "limit less cost; below 0 it is broken", ("constraint",)),
    Metric("step_duration_seconds", "histogram", "from the end of the last step", ()),
    Metric("step_wait_seconds", "histogram", "waited for groups before the step", ()),
    Metric("group_age_versions", "histogram", "age of trained groups, by their oldest token", (), AGES),
    Metric("trained_tokens", "counter", "completion tokens of the steps' batches"),
    Metric("trained_groups", "counter", "groups of the steps' batches"),
    Metric("dropped_groups", "counter", "groups that were not trained", ("reason",)),
    Metric("generated_tokens", "counter", "tokens of completed groups", ("process",)),
    Metric("generated_groups", "counter", "groups whose completions are sampled", ("process",)),
    Metric("verdicts", "counter", "verdicts on samples", ("verifier", "status")),
    Metric("queue_works", "gauge", "works that wait", ("queue",)),
    Metric("leased_works", "gauge", "works handed out"),
    Metric("dead_works", "gauge", "works set aside after failing too often"),
    Metric("work_wait_seconds", "histogram", "from the entry into a queue to the lease", ("queue",)),
    Metric("work_service_seconds", "histogram", "from the lease to its end", ("queue",)),
    Metric("leases_ended", "counter", "leases by how they ended", ("queue", "how")),
    Metric("process_up", "gauge", "1 from when it is ready to its end", ("process",)),
    Metric("process_starts", "counter", "how often it was started", ("process",)),
    Metric("process_leases", "gauge", "works it holds", ("process",)),
    Metric("process_credit", "gauge", "works it can hold", ("process",)),
    Metric("process_busy_seconds", "gauge", "in its present piece of work, without progress", ("process",)),
    Metric("process_resident_memory_bytes", "gauge", "its memory", ("process",)),
    Metric("process_weight_version", "gauge", "version that a generator samples with", ("process",)),
    Metric("warnings", "counter", "lines of level warning and error", ("event", "process")),
    Metric("health_warnings", "counter", "health rules found broken", ("rule",)),
    Metric("lost_log_lines", "counter", "lines that a full queue or a full disk lost", ("process",)),
    Metric("last_event_timestamp_seconds", "gauge", "time of the newest event, since 1970"),
)  # fmt: skip
_DOWN: Final = ("process.finished", "process.failed", "process.exited")


class Metrics:
    """A sink (`sink.py`) that keeps the metrics and answers scrapes at `/metrics`."""

    def __init__(self, run: str, host: str, port: int) -> None:
        """Listens from here on; port 0: any free one. Raises ConfigError where it cannot."""
        self._registry = prometheus_client.CollectorRegistry()
        self._metrics: dict[str, Any] = {metric.name: _made(metric, self._registry) for metric in TABLE}
        prometheus_client.Info("safeladder_run", "the run", registry=self._registry).info({"run": run})
        self._leases = Leases()
        try:
            self._server, self._thread = prometheus_client.start_http_server(port, host, self._registry)
        except OSError as error:
            raise ConfigError(f"cannot serve metrics at {host}:{port}: {error}") from None

    @property
    def port(self) -> int:
        return int(self._server.server_port)

    def take(self, event: Event) -> None:
        name, process = event.get("event"), f"{event.get('role')}/{event.get('replica')}"
        self._set("last_event_timestamp_seconds", seconds(event))
        if event.get("level") in ("warning", "error"):
            self._count("warnings", 1, str(name), process)
        if lost := event.get("dropped_lines"):
            self._count("lost_log_lines", lost, process)
        match name:
            case "step.completed" if "kind" not in event:
                self._step(event)
            case "hub.status":
                self._state(event)
            case "work.hops":
                self._hops(event)
            case "group.generated":
                self._count("generated_tokens", event["tokens"], process)
                self._count("generated_groups", 1, process)
            case "group.judged":
                self._judged(event)
            case "health.warning":
                self._count("health_warnings", 1, event["rule"])
            case "weights.loaded":
                self._set("process_weight_version", event["version"], process)
            case "actor.ready":
                self._set("process_up", 1, process)
            case "process.started" | "process.restarted" if "name" in event:  # the launcher's word
                self._count("process_starts", 1, event["name"])
            case _ if name in _DOWN:
                self._set("process_up", 0, event.get("name") or process)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _step(self, event: Event) -> None:
        for field, metric in FIGURES.items():
            if event.get(field) is not None:
                self._set(metric.name, event[field])
        for metric_name, field in (("family_reward_mean", "families"), ("verifier_score_mean", "channels")):
            for label, value in numbers(event.get(field) or {}).items():
                self._set(metric_name, value, label)
        for label, figures in (event.get("constraints") or {}).items():
            for kind in ("multiplier", "margin"):
                if figures.get(kind) is not None:
                    self._set(f"constraint_{kind}", figures[kind], label)
        self._observe("step_duration_seconds", event["step_s"])
        self._observe("step_wait_seconds", event["wait_s"])
        for age in event["staleness"]:
            self._observe("group_age_versions", age)
        self._count("trained_tokens", event["tokens"])
        self._count("trained_groups", event["groups"])
        for reason, count in event["dropped"].items():
            self._count("dropped_groups", count, reason)

    def _state(self, event: Event) -> None:
        for queue, depth in event["waiting"].items():
            self._set("queue_works", depth, queue)
        self._set("leased_works", event["leased"])
        self._set("dead_works", event["dead"])
        self._set("process_resident_memory_bytes", event["rss_bytes"], "hub/0")
        for name, worker in event["workers"].items():
            if worker["queues"]:
                self._worker(name, worker)

    def _worker(self, name: str, worker: Mapping[str, Any]) -> None:
        self._set("process_leases", worker["leases"], name)
        self._set("process_credit", worker["credit"], name)
        self._set("process_busy_seconds", worker["busy_s"], name)
        if memory := worker["metrics"].get("rss_bytes"):
            self._set("process_resident_memory_bytes", memory, name)

    def _hops(self, event: Event) -> None:
        for lease, begins in self._leases.take(event):
            if begins:
                self._observe("work_wait_seconds", lease.begin - lease.waited_from, lease.queue)
            else:
                self._observe("work_service_seconds", lease.end - lease.begin, lease.queue)
                self._count("leases_ended", 1, lease.queue, lease.ended)

    def _judged(self, event: Event) -> None:
        for verifier, columns in event["verdicts"].items():
            rows = max((len(values) for key, values in columns.items() if key != "versions"), default=0)
            for status in columns.get("statuses", ["ok"] * rows):
                self._count("verdicts", 1, verifier, status)

    def _set(self, name: str, value: float, *labels: str) -> None:
        self._labelled(name, labels).set(value)

    def _count(self, name: str, value: float, *labels: str) -> None:
        self._labelled(name, labels).inc(value)

    def _observe(self, name: str, value: float, *labels: str) -> None:
        self._labelled(name, labels).observe(value)

    def _labelled(self, name: str, labels: tuple[str, ...]) -> Any:
        metric = self._metrics[name]
        return metric.labels(*labels) if labels else metric


def _made(metric: Metric, registry: Any) -> Any:
    name, meaning = f"safeladder_{metric.name}", metric.meaning
    if metric.kind == "histogram":
        return prometheus_client.Histogram(name, meaning, metric.labels, registry=registry, buckets=metric.buckets)
    return (prometheus_client.Gauge if metric.kind == "gauge" else prometheus_client.Counter)(
        name, meaning, metric.labels, registry=registry
    )


def markdown() -> str:
    """The table of `docs/exports.md`."""
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for metric in TABLE:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{metric.shown}` | {metric.kind} | {labels} | {metric.meaning} |")
    return "\n".join(rows) + "\n"
