"""Proves a configuration before anything starts: what would fail in an hour is said now, with the key to change.

Every check is a small function from a `Config` to findings. An `error` stops a launch; a `warning` is something that
works but is probably not meant.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TextIO

import psutil
from rich.table import Table

from safeladder.launch import planner, tasks
from safeladder.launch.config import Config, ConfigError
from safeladder.launch.export.sink import sink_class
from safeladder.launch.factory import actor_class, actor_options
from safeladder.launch.processes import worker_names
from safeladder.launch.readers import DATASET
from safeladder.launch.recipe_files import GENERATOR, LEARNER, REFERENCE, SEARCHER
from safeladder.launch.terminal import console
from safeladder.policies import staleness
from safeladder.policies.finding import takes_images
from safeladder.protocol.images import has_images
from safeladder.protocol.keys import KeyFileError, load_hub, load_worker
from safeladder.protocol.naming import nearest
from safeladder.protocol.sockets import is_local
from safeladder.verifiers import registry

IPC_PATH_BYTES: Final = 107  # of sockaddr_un, without its final zero
EMBEDDED_BYTES: Final = 538_000_000

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """level: error or warning. key: what to change, dotted. message: what is wrong and what would be right."""

    level: Level
    key: str
    message: str


Findings = Iterator[Finding]


def check(config: Config, elsewhere: float | None = None) -> list[Finding]:
    """Everything that is wrong or doubtful, errors first; empty where nothing is.

    elsewhere: bytes of a device of the machine that the file is for; what this machine has is then not asked.
    """
    chosen = [examine for examine in CHECKS if elsewhere is None or examine not in HERE]
    findings = [finding for examine in chosen for finding in examine(config)]
    findings += accelerators(config, elsewhere)
    return sorted(findings, key=lambda finding: finding.level)


def failed(findings: Sequence[Finding]) -> bool:
    return any(finding.level == "error" for finding in findings)


def show(findings: Sequence[Finding], stream: TextIO) -> None:
    out = console(stream)
    if not findings:
        out.print("nothing to object to")
        return
    table = Table("", "key", "what and what to do", box=None)
    for finding in findings:
        table.add_row(finding.level, finding.key, finding.message)
    out.print(table)


# ----------------------------------------------------------------------------------------------------------- pools


def actors(config: Config) -> Findings:
    """Every actor can be imported and accepts its options, every command and interpreter exists."""
    for name, pool in config.pools.items():
        key = f"pools.{name}"
        if pool.command is not None:
            if shutil.which(pool.command[0], path=pool.env.get("PATH")) is None:
                yield Finding("error", f"{key}.command", f"{pool.command[0]!r} is not found or may not be executed")
        elif pool.python is not None:  # its packages are not ours: what it can import shows at its start
            if shutil.which(pool.python) is None:
                yield Finding("error", f"{key}.python", f"{pool.python!r} is not found or may not be executed")
        else:
            try:
                actor_options(actor_class(pool), pool, f"{key}.options")
            except ConfigError as error:
                yield Finding("error", key, str(error))


def devices(config: Config) -> Findings:
    """Every device exists."""
    wanted = {name: pool.device for name, pool in config.pools.items() if pool.device != "cpu"}
    if not wanted:
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    known = ["cpu", "cuda", *(f"cuda:{index}" for index in range(count))] if count else ["cpu"]
    for name, device in wanted.items():
        if device not in known:
            yield Finding("error", f"pools.{name}.device", f"there is no {device!r} here; there is {', '.join(known)}")


# ---------------------------------------------------------------------------------------------------------- routes


def routes(config: Config) -> Findings:
    """Every queue of a route has a consumer, all end at the same one, and what a reward needs is run on the way."""
    consumers = _consumers(config)
    families = config.recipe.families
    if not families:
        yield Finding("error", "recipe.families", "is empty: no record has a route")
    for label, family in families.items():
        key = f"recipe.families.{label}"
        if not family.route:
            yield Finding("error", f"{key}.route", "is empty; it ends in the learner's queue")
        for queue in dict.fromkeys(family.route):
            if queue not in consumers:
                yield Finding(
                    "error", f"{key}.route", f"nobody consumes the queue {queue!r}{nearest(queue, list(consumers))}"
                )
        if len(set(family.route)) < len(family.route):
            yield Finding("warning", f"{key}.route", "visits a queue twice")
        if not family.terms:
            yield Finding("error", f"{key}.terms", "is empty: its samples would have no reward")
        yield from _verifiers_on_route(config, label)
    ends = {family.route[-1] for family in families.values() if family.route}
    if len(ends) > 1:
        yield Finding(
            "error", "recipe.families", f"all routes must end in the learner's queue, not in {', '.join(sorted(ends))}"
        )
    for label in config.data.families:
        if label not in families:
            yield Finding(
                "error", f"data.families.{label}", f"no such family in the recipe{nearest(label, list(families))}"
            )


def searchers(config: Config) -> Findings:
    """A searcher on a route makes trajectories or trees: the pools that it calls are there, and none of them waits for it in turn."""
    consumers = _consumers(config)
    routed = {queue for family in config.recipe.families.values() for queue in family.route}
    for name, pool in config.pools.items():
        if pool.actor != SEARCHER or not routed & set(pool.queues):
            continue
        needed = ("generator",) if pool.options.get("training") == "tree" else ("generator", "retriever")
        for option in needed:
            queue = str(pool.options.get(option, option))
            key = f"pools.{name}.options.{option}"
            if queue in pool.queues:
                yield Finding("error", key, f"is {queue!r}, the searcher's own queue")
            elif queue not in consumers:
                message = f"nobody consumes the queue {queue!r}, which a searcher on a route calls"
                yield Finding("error", key, message + nearest(queue, list(consumers)))


def _verifiers_on_route(config: Config, label: str) -> Findings:
    family = config.recipe.families[label]
    visited = [pool for pool in config.pools.values() if set(pool.queues) & set(family.route)]
    run = {
        _signed(verifier, options)
        for pool in visited
        for verifier, options in (pool.options.get("verifiers") or {}).items()
    }
    if any(pool.command is not None for pool in visited):
        return  # a foreign actor may be the verifier, under whatever name
    needed = {f"terms.{name}": name for name in family.terms}
    needed |= {f"costs.{name}": cost.verifier for name, cost in family.costs.items()}
    for place, verifier in needed.items():
        if verifier not in run:
            message = f"no pool on this family's route runs the verifier {verifier!r}{nearest(verifier, sorted(run))}"
            yield Finding("error", f"recipe.families.{label}.{place}", message)


def _signed(verifier: str, options: Any) -> str:
    """The name on the verdicts of an entry; an entry that is wrong is called what it calls itself, and found by its pool."""
    try:
        return registry.signature(verifier, options)
    except registry.UnknownVerifier:
        return verifier


def _consumers(config: Config) -> dict[str, list[str]]:
    """Queue -> the pools that consume it; a pool without replicas consumes nothing."""
    consumers: dict[str, list[str]] = {}
    for name, pool in config.pools.items():
        for queue in pool.queues if pool.replicas and pool.credit else ():
            consumers.setdefault(queue, []).append(name)
    return consumers


# -------------------------------------------------------------------------------------------------------- capacity


def capacity(config: Config) -> Findings:
    """Pools cannot come to wait for each other for ever."""
    learner, bound = config.learner, config.staleness
    yield from _admission(config)
    held = learner.checkpoint_every * learner.batch + _outstanding(config)
    ends = {family.route[-1] for family in config.recipe.families.values() if family.route}
    for name, pool in config.pools.items():
        if ends & set(pool.queues) and pool.actor == LEARNER:
            if pool.credit < held:
                message = (
                    f"is {pool.credit}, but the learner keeps its leases until a checkpoint: it needs at least "
                    f"checkpoint_every * batch + what policy {bound.policy!r} may have outstanding = {held}"
                )
                yield Finding("error", f"pools.{name}.credit", message)
            if pool.replicas != 1:
                yield Finding(
                    "error", f"pools.{name}.replicas", f"must be 1, not {pool.replicas}: one learner owns the order"
                )
        rows = pool.options.get("max_sequences", 16)
        if pool.actor == GENERATOR and isinstance(rows, int) and config.sampling.samples > rows:
            message = f"is {config.sampling.samples}, but pools.{name}.options.max_sequences allows {rows} rows"
            yield Finding("error", "sampling.samples", message)
    compared = list(learner.advantage) != ["ones"]  # demonstrations are not sampled, and not compared with one another
    if compared and config.sampling.temperature == 0:
        message = "is 0: all samples of a group are the same, so that nothing can be learnt from their difference"
        yield Finding("warning", "sampling.temperature", message)
    if compared and config.sampling.samples < 2:
        yield Finding("warning", "sampling.samples", "is 1: an advantage relative to the group needs at least 2")
    if sum(1 for pool in config.pools.values() if (pool.actor or "").endswith(".feeder:Feeder") and pool.replicas) > 1:
        yield Finding("error", "pools", "there is more than one feeder pool; one feeder owns the order of admission")


def _admission(config: Config) -> Findings:
    """A batch can always come together under the staleness policy, and dynamic sampling can find one."""
    learner, bound = config.learner, config.staleness
    full = (bound.eta + 1) * learner.batch
    try:
        staleness.create(bound, learner.batch)
    except ValueError as error:
        key = "window" if str(error).startswith("window") else "max_in_flight"
        yield Finding("error", f"staleness.{key}", str(error).removeprefix(f"{key} "))
    else:
        if bound.policy != "drop" and bound.max_in_flight < full:
            message = f"is below (eta + 1) * batch = {full}: pools will wait though eta allows work"
            yield Finding("warning", "staleness.max_in_flight", message)
        if bound.policy == "drop" and bound.max_in_flight > full:
            message = f"is above (eta + 1) * batch = {full}: groups will be sampled only to be dropped for their age"
            yield Finding("warning", "staleness.max_in_flight", message)
    if learner.dynamic_sampling and config.sampling.samples < 2:
        message = "needs at least 2 sampling.samples: a group of one has no spread, and none would ever be trained"
        yield Finding("error", "learner.dynamic_sampling", message)
    elif learner.dynamic_sampling and config.sampling.temperature == 0:
        message = "needs a sampling.temperature above 0: equal samples have no spread, and none would ever be trained"
        yield Finding("error", "learner.dynamic_sampling", message)
    elif learner.dynamic_sampling and (learner.max_uninformative or learner.batch) < learner.batch:
        message = (
            f"is {learner.max_uninformative}, below a batch of {learner.batch}: the first unlucky one ends the run"
        )
        yield Finding("warning", "learner.max_uninformative", message)


def _outstanding(config: Config) -> int:
    """Most groups that the staleness policy lets be between admission and a batch at once; a guess for a wrong one."""
    try:
        return staleness.create(config.staleness, config.learner.batch).limit
    except ValueError:
        return (config.staleness.eta + 1) * config.learner.batch


# ---------------------------------------------------------------------------------------------------------- learner


def learner_rules(config: Config) -> Findings:
    """Every rule of the learner exists and takes its options, and rules about length know who is qualified."""
    from safeladder.actors.training import constraints, step_options
    from safeladder.policies.credit import Credit
    from safeladder.policies.loss import PolicyLoss

    try:
        options = step_options(config)
        Credit(options)
        PolicyLoss(options)
    except ValueError as error:
        yield Finding("error", "learner", str(error))
        return
    try:
        constraints(config)
    except ValueError as error:
        yield Finding("error", "constraints", str(error))
    costs = {name for family in config.recipe.families.values() for name in family.costs}
    for name, section in config.constraints.items():
        for key, cost in ((name, name), (f"{name}.acts_on", section.acts_on or name)):
            if cost not in costs:
                message = f"no family of the recipe has the cost {cost!r}{nearest(cost, sorted(costs))}"
                yield Finding("error", f"constraints.{key}", message)
    if list(config.learner.advantage) != ["gdpo"]:
        for label, family in config.recipe.families.items():
            for verifier in (name for name, term in family.terms.items() if term.apart):
                message = "needs learner.advantage: gdpo, the only rule that normalises terms apart"
                yield Finding("error", f"recipe.families.{label}.terms.{verifier}.apart", message)
    if config.learner.length_rewards or config.learner.length_advantage:
        for label, family in config.recipe.families.items():
            if not any(term.qualifies is not None for term in family.terms.values()):
                message = "no term says from which score on a sample qualifies: length will never count for this family"
                yield Finding("warning", f"recipe.families.{label}.terms", message)


# --------------------------------------------------------------------------------------------------------- machine


def endpoint(config: Config) -> Findings:
    """The hub can bind where it is asked to, and is not open to strangers."""
    bind, keys = config.hub.bind, config.hub.keys
    if bind == "ipc":
        length = len(f"{tempfile.gettempdir()}/safeladder-12345678/hub")
        if length > IPC_PATH_BYTES:
            yield Finding(
                "error",
                "hub.bind",
                f"the ipc path would have {length} bytes, at most {IPC_PATH_BYTES} work; set TMPDIR",
            )
    else:
        if not is_local(bind) and keys is None:
            yield Finding(
                "error", "hub.keys", f"{bind} can be reached from outside: make keys with `safeladder keys DIR`"
            )
        yield from _port(bind)
    for key, serve, host in (
        ("weights.serve", config.weights.serve, "learner"),
        ("data.serve", config.data.serve, "feeder"),
    ):
        if serve is None:
            continue
        if not serve.startswith("tcp://"):
            yield Finding("error", key, f"{serve!r} is no address; give tcp://HOST:PORT of the {host}'s host")
        elif not is_local(serve) and keys is None:
            message = f"{serve} can be reached from outside: set hub.keys, with keys made by `safeladder keys DIR`"
            yield Finding("error", key, message)
    if keys is not None:
        try:
            load_hub(Path(keys))
            for name in worker_names(config):
                load_worker(Path(keys), name)
        except (KeyFileError, OSError) as error:
            yield Finding("error", "hub.keys", str(error))


def _port(bind: str) -> Findings:
    host, _, port = bind.removeprefix("tcp://").rpartition(":")
    host = host.strip("[]")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError) as error:
        yield Finding("error", "hub.bind", f"cannot bind {bind}: {error}")


def sinks(config: Config) -> Findings:
    for place, asked in enumerate(config.watch.sinks):
        name, key = asked.partition("=")[0], f"watch.sinks[{place}]"
        try:
            if sink_class(name).LIVE_TARGET is None:
                yield Finding("error", key, f"{name} is made of a whole run: safeladder export RUN --to {name}")
        except ConfigError as error:
            yield Finding("error", key, str(error))


def disk(config: Config) -> Findings:
    """The run's folder can be written, and what is kept fits."""
    folder = Path(config.run.directory).expanduser().absolute()
    existing = next(parent for parent in [folder, *folder.parents] if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield Finding("error", "run.directory", f"{existing} cannot be written to")
        return
    # weights and two moments a checkpoint, one more than is kept while the newest is written; and the publications
    needed = model_bytes(config) * (3 * (config.learner.keep_checkpoints + 1) + config.weights.keep + 1)
    free = shutil.disk_usage(existing).free
    if needed > free:
        message = (
            f"checkpoints and weights need about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free in {existing}"
        )
        yield Finding("warning", "run.directory", message)


def memory(config: Config) -> Findings:
    """The models of all pools on the CPU fit; a simple estimate without activations and caches."""
    # a generator: weights and the newest publication; the learner: weights, gradients, two moments, the last publication
    copies = {GENERATOR: 2, REFERENCE: 1, LEARNER: 5 if config.weights.delta else 4}
    pools = [pool for pool in config.pools.values() if pool.device == "cpu"]
    needed = model_bytes(config) * sum(copies.get(pool.actor or "", 0) * pool.replicas for pool in pools)
    free = psutil.virtual_memory().available
    if needed > free:
        message = (
            f"about {needed / 1e9:.1f} GB are needed for the models of all pools, {free / 1e9:.1f} GB are available"
        )
        yield Finding("warning", "pools", message)


def accelerators(config: Config, elsewhere: float | None) -> Findings:
    """What the pools on GPUs need fits on their devices (planner.py)."""
    planned = planner.plan(config)
    if all(each.first is None for each in planned.models):
        return
    for pool, message in planner.crowded(planned, elsewhere or planner.device_bytes()):
        yield Finding("error", f"pools.{pool}", message)


def model_bytes(config: Config) -> int:
    """Bytes of the policy's weights as far as they are known without loading them, else 0."""
    if config.policy.model == "embedded":
        return EMBEDDED_BYTES
    folder = Path(config.policy.model).expanduser()
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder.is_dir() else 0


def data(config: Config) -> Findings:
    """The task files are there and can be read, and every record belongs to a family of the recipe."""
    sources, known = config.data.tasks, config.recipe.families
    files = [(index, source) for index, source in enumerate(sources) if not source.startswith(DATASET)]
    absent = [index for index, source in files if not tasks.located(source).is_file()]
    for index in absent:
        yield Finding("error", f"data.tasks[{index}]", f"there is no file {sources[index]}")
    if not sources:
        yield Finding("error", "data.tasks", "is empty; `embedded` is the set that comes with the package")
    if absent or not sources:
        return
    try:
        records = tasks.read(sources, config.data.columns)
    except ConfigError as error:
        yield Finding("error", "data.tasks", str(error))
        return
    if shown := next((record for record in records if has_images(record)), None):
        yield from _sighted(config, f"the record {shown.id!r} has images")
    labels = Counter(record.label for record in records)
    for label, count in labels.items() if known else ():
        if label not in known:
            message = f"is no family, but {count} records have this label{nearest(label, list(known))}"
            yield Finding("error", f"recipe.families.{label}", message)


def _sighted(config: Config, why: str) -> Findings:
    """Every model and engine that meets an image takes it. `why`: what is said of the first record with one."""
    from safeladder.policies.engines import registry as engines
    from safeladder.policies.engines.base import EngineError

    models = {"policy.model": config.policy.model}
    for name, pool in config.pools.items():
        key = f"pools.{name}.options"
        if pool.actor == REFERENCE and pool.options.get("model"):
            models[f"{key}.model"] = str(pool.options["model"])
        if pool.actor == GENERATOR and pool.python is None:
            engine = str(pool.options.get("engine", "transformers"))
            with contextlib.suppress(EngineError):  # said by who needs it: it cannot be imported here
                if not engines.kind(engine).capabilities.images:
                    yield Finding("error", f"{key}.engine", f"{engine!r} takes text only, and {why}")
    for key, model in models.items():
        if takes_images(model) is False:
            yield Finding("error", key, f"{model!r} takes text only, and {why}; see docs/images.md for models that see")


CHECKS: Final[tuple[Callable[[Config], Findings], ...]] = (
    actors, devices, routes, searchers, capacity, learner_rules, endpoint, sinks, disk, memory, data,
)  # fmt: skip
HERE: Final = (devices, disk, memory)  # of this machine
