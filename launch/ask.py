"""`safeladder ask`: one question over the pools of a live run, or of a finished one that is served again for it."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safeladder.actors.deliberation import Deliberation, DeliberationOptions, tokenizer_of
from safeladder.launch.config import ConfigError, Pool, load_resolved
from safeladder.launch.rundir import RunDirectory, is_live
from safeladder.launch.serve import served
from safeladder.policies.finding import resolve
from safeladder.policies.search.tree import Node
from safeladder.protocol import messages as m
from safeladder.protocol.keys import load_worker
from safeladder.protocol.transport import CallError, Link


class AskError(RuntimeError):
    """The question was not answered; says why."""


def client(run: RunDirectory, purpose: str, deadline_s: float = 10.0) -> Link:
    """A link of a client's own to a live run. Raises LinkError when nobody answers."""
    config = load_resolved(run.config)
    name = f"{purpose}/{uuid.uuid4().hex[:8]}"
    keys = None
    if config.hub.keys:
        name = f"{purpose}/0"
        keys = load_worker(Path(config.hub.keys), name)
    link = Link(run.endpoint, name, keys=keys, role=purpose)
    link.start(deadline_s)
    return link


def ask(run: RunDirectory, question: m.Question, watch: Callable[[Node], None] | None = None) -> m.Answer:
    """Searches for an answer over the pools of a run; one that has ended is served again for it, which takes some seconds.

    `watch` is called with each judged step. Raises ConfigError, LinkError, AskError, UnknownStrategy.
    """
    config = load_resolved(run.config)
    if "searcher" not in config.pools:
        raise ConfigError(f"{run.config} names no pool `searcher`, which says how questions are answered")
    options = DeliberationOptions(**answering(config.pools["searcher"]))
    if is_live(run):
        return _ask_live(run, options, question, watch)
    with served(run) as serving:
        return _ask_live(serving, options, question, watch)


def answering(searcher: Pool) -> dict[str, Any]:
    """The options of a searcher that say how it answers, without those of how it trains."""
    names = {field.name for field in dataclasses.fields(DeliberationOptions)}
    return {name: value for name, value in searcher.options.items() if name in names}


def _ask_live(
    run: RunDirectory, options: DeliberationOptions, question: m.Question, watch: Callable[[Node], None] | None
) -> m.Answer:
    """The search itself, in this process, as the run's searcher would do it."""
    config = load_resolved(run.config)
    tokenizer = tokenizer_of(resolve(config.policy.model, Path(config.policy.cache) if config.policy.cache else None))
    link = client(run, "client")
    try:
        deliberation = Deliberation(options, config, link, tokenizer)
        return asyncio.run(deliberation.answer(f"question-{uuid.uuid4().hex}", question, watch=watch))
    except CallError as error:
        raise AskError(f"no answer from {run.path.name}: {error}") from error
    finally:
        link.close("done")


def dead_letters(run: RunDirectory, requeue: str | None = None) -> dict[str, object]:
    """The dead letters of a live run; with `requeue` (an id, or "all") they are put back first. Raises ConfigError, LinkError."""
    if not is_live(run):
        raise ConfigError(
            f"{run.path} is not running: its hub holds the dead letters; `safeladder launch --resume` it, or look for "
            "`work.died` in its logs"
        )
    link = client(run, "client")
    try:
        if requeue is not None:
            report = link.command("requeue", None if requeue == "all" else requeue).result(10)
            if error := report.get("error"):
                raise ConfigError(str(error))
            return dict(report["requeued"])
        return link.query("dead").result(10)
    finally:
        link.close("done")
