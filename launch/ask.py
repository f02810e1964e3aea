"""`safeladder ask`: one question to the searcher of a live run, or of a finished one that is served again for it."""

from __future__ import annotations

import fcntl
import uuid
from pathlib import Path

from safeladder.launch.config import ConfigError, load_resolved
from safeladder.launch.rundir import RunDirectory
from safeladder.launch.serve import served
from safeladder.protocol import codec
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


def ask(run: RunDirectory, question: m.Question, deadline_s: float = 180.0) -> m.Answer:
    """Asks the searcher of a run; one that has ended is served again for it, which takes some seconds.

    Raises ConfigError, LinkError, AskError.
    """
    if is_live(run):
        return ask_live(run, question, deadline_s)
    with served(run) as serving:
        return ask_live(serving, question, deadline_s)


def is_live(run: RunDirectory) -> bool:
    """Whether a launcher holds the run's lock."""
    run.info()  # refuses what is no run
    with run.lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def ask_live(run: RunDirectory, question: m.Question, deadline_s: float) -> m.Answer:
    """One call to the queue `searcher` of a live run."""
    link = client(run, "client")
    try:
        work = codec.pack(question, id=f"question-{uuid.uuid4().hex}", route=["searcher"], lane="interactive")
        try:
            parcel = link.call(work, deadline_s).result(deadline_s + 5)
        except CallError as error:
            raise AskError(f"no answer from {run.path.name}: {error}") from error
        answer, _ = codec.unpack(parcel)
        if not isinstance(answer, m.Answer):
            raise AskError(f"the searcher sent a {type(answer).__name__}")
        return answer
    finally:
        link.close("done")


def dead_letters(run: RunDirectory, requeue: str | None = None) -> dict[str, object]:
    """The dead letters of a live run; with `requeue` (an id, or "all") they are put back first."""
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
