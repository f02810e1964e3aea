"""What happened to a sample, from a run's logs and ledger alone: each hop, its verdicts and rewards, its part in a step, or its end.

    hub      work.hops        when it waited where, who held it for how long, how it ended
    roles    group.*          what the generator, the verifiers and the learner made of it
    ledger   surviving steps  whether the learner's history that stands has trained or dropped it

A sample is a completion of a work, `ID#k`. A work that was trained and then undone by a roll-back has several steps in its life;
the ledger says which one stands. Where a hub was killed, the hops of its last tenth of a second are not in its log; the journal
still knows that the work was issued.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from safeladder.launch import audit
from safeladder.launch.config import ConfigError
from safeladder.launch.events import Event, merged, seconds
from safeladder.launch.rundir import RunDirectory
from safeladder.policies.ledger import Entry, Ledger

SHOWN: Final = 10
ENDS: Final = ("finished", "died")
_OF_A_GROUP: Final = ("group.", "work.failed", "work.postponed", "work.handed_back", "lease.", "answer.")


class LineageError(RuntimeError):
    """There is no such sample; says what there is."""


@dataclass
class Life:
    """Of one work. hops: rows of `work.hops`, each with `time` in seconds since 1970; events: what roles said of it."""

    id: str
    hops: list[dict[str, Any]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def told(self, name: str) -> list[Event]:
        return [event for event in self.events if event["event"] == name]

    @property
    def training(self) -> bool:
        """Calls, evaluation and the end of the stream are not trained."""
        return not any("lane" in hop for hop in self.hops) and not self.id.startswith(("end-", "question-"))

    @property
    def samples(self) -> int:
        """Completions, 0 where none was made."""
        sampled = [len(event["lengths"]) for event in self.told("group.generated")]
        return max([*sampled, *(event["samples"] for event in self.told("group.deliberated"))], default=0)


@dataclass(frozen=True)
class History:
    """The learner's history that stands. steps: id -> the entry that trained it; dropped: id -> why it was not."""

    steps: dict[str, Entry]
    dropped: dict[str, str]

    @classmethod
    def read(cls, run: RunDirectory) -> History:
        """Of the newest checkpoint; empty before the first. Raises LedgerError for a damaged ledger."""
        state = audit.newest_state(run.checkpoints)
        entries = Ledger(run.ledger, read_only=True).lineage(state.ledger_head) if state else []
        return cls(
            {identity: entry for entry in entries for identity in entry.ids},
            {identity: why for entry in entries for identity, why in zip(entry.dropped, entry.reasons, strict=False)},
        )


def lives(run: RunDirectory, holding: str = "") -> dict[str, Life]:
    """Every work that the logs tell of; of lines that hold this text alone, where one is given."""
    found: dict[str, Life] = {}
    for event in merged(run.path / "logs", holding=holding.encode()):
        name = event["event"]
        if name == "work.hops":
            epoch = seconds(event) - event["mono_ns"] / 1e9
            for row in event["rows"]:
                found.setdefault(row["id"], Life(row["id"])).hops.append({**row, "time": epoch + row["at"]})
        elif name.startswith(_OF_A_GROUP) and (identity := event.get("id") or event.get("work")):
            found.setdefault(identity, Life(identity)).events.append(event)
    return found


def outcome(life: Life, history: History) -> tuple[str, str]:
    """One of trained, dropped, died, ended, undone, pending, answered; and where or why."""
    if entry := history.steps.get(life.id):
        return "trained", f"at step {entry.step + 1}, which made version {entry.published} of version {entry.version}"
    if reason := history.dropped.get(life.id):
        return "dropped", f"the learner did not train it: {reason}"
    if deaths := [hop for hop in life.hops if hop["do"] == "died"]:
        return "died", f"set aside at {deaths[-1]['queue']!r}: {deaths[-1].get('reason', '')}"
    if endings := [hop for hop in life.hops if hop["do"] == "ended"]:
        return "ended", endings[-1].get("reason", "")
    if not life.training and life.hops and life.hops[-1]["do"] == "finished":
        return "answered", life.hops[-1].get("reason", "")
    undone = "; it was trained once, in a step that a roll-back undid" if life.told("group.trained") else ""
    return ("undone" if undone else "pending"), place(life) + undone


def place(life: Life) -> str:
    """Where the work is, as of its last hop."""
    if not life.hops:
        return "the hub's log does not tell of it"
    last = life.hops[-1]
    match last["do"]:
        case "leased":
            return f"held by {last['to']}, which took it from queue {last['queue']!r}"
        case "finished":
            return f"it has left the hub: {last.get('reason', 'done')}"
        case "died":
            return f"set aside as a dead letter at {last['queue']!r}: {last.get('reason', '')}"
        case _:
            return f"waits in queue {last['queue']!r}"


def count(run: RunDirectory) -> Counter[str]:
    """Outcome -> works, of all training works that were issued; those that only the journal knows are pending there."""
    history, found = History.read(run), lives(run)
    for identity in {*history.steps, *history.dropped, *_journaled(run)} - set(found):
        found[identity] = Life(identity)
    return Counter(outcome(life, history)[0] for life in found.values() if life.training)


def _journaled(run: RunDirectory) -> set[str]:
    return audit.read_journal(run.journal).ids if run.journal.exists() else set()


def find(run: RunDirectory, name: str) -> tuple[Life, int | None]:
    """A work by id, by its number or by the end of its id, and the completion after `#`. Raises LineageError, ConfigError."""
    run.info()  # refuses what is no run
    identity, _, sample = name.partition("#")
    if sample and not sample.isdigit():
        raise ConfigError(f"{name!r}: after # stands the number of a completion, from 0")
    holding = f"{int(identity):08d}-" if identity.isdigit() else identity
    found = lives(run, holding)
    chosen = [found[identity]] if identity in found else [life for life in found.values() if _named(life.id, holding)]
    if not chosen and holding in _journaled(run):
        chosen = [Life(holding)]
    if len(chosen) != 1:
        some = ", ".join(life.id for life in chosen[:SHOWN])
        raise LineageError(
            f"{len(chosen)} works of {run.path.name} are called {identity!r}{': ' if some else ''}{some}"
        )
    life = chosen[0]
    if sample and life.samples and int(sample) >= life.samples:
        raise LineageError(f"{life.id} has completions 0 to {life.samples - 1}")
    return life, int(sample) if sample else None


def _named(identity: str, text: str) -> bool:
    return identity.startswith(text) if text.endswith("-") else identity.endswith(f"-{text}")


# ------------------------------------------------------------------------------------------------------------ in words


def why(run: RunDirectory, name: str) -> Iterator[str]:
    """The life of a work or of one of its completions, a line a hop."""
    life, sample = find(run, name)
    kind, said = outcome(life, History.read(run))
    yield f"{life.id}{'' if sample is None else f'#{sample}'}: {kind}, {said}"
    moments = [(hop["time"], _hop(hop)) for hop in life.hops]
    for event in life.events:
        moments += [(seconds(event), f"{event['role']}/{event['replica']} {line}") for line in _event(event, sample)]
    begun = min((time for time, _ in moments), default=0.0)
    for time, line in sorted(moments, key=lambda moment: moment[0]):
        yield f"{time - begun:10.3f} s  {line}"


def where(run: RunDirectory, name: str, now: float) -> str:
    """In which queue or lease a work is. now: seconds since 1970."""
    life, _ = find(run, name)
    kind, said = outcome(life, History.read(run))
    if kind in ("trained", "dropped"):
        return f"{life.id}: {kind}, {said}"
    since = f", for {now - life.hops[-1]['time']:.1f} s" if life.hops and life.hops[-1]["do"] not in ENDS else ""
    return f"{life.id}: {place(life)}{since}"


def _hop(hop: dict[str, Any]) -> str:
    reason = f": {hop['reason']}" if hop.get("reason") else ""
    match hop["do"]:
        case "accepted":
            return f"admitted as number {hop['sequence']}; waits for {hop['queue']}"
        case "leased":
            again = f", attempt {hop['attempt']}" if "attempt" in hop else ""
            return f"{hop['to']} takes it from {hop['queue']} after a wait of {hop['wait_s']:g} s{again}"
        case "moved":
            return f"{hop['by']} is done after {hop['service_s']:g} s; waits for {hop['queue']}"
        case "returned":
            return f"{hop['by']} gives it up after {hop['service_s']:g} s{reason}; waits for {hop['queue']}"
        case "died":
            return f"set aside at {hop['queue']} after {hop['service_s']:g} s with {hop['by']}{reason}"
        case "ended":
            return f"{hop['by']} ends it after {hop['service_s']:g} s{reason}; {hop['queue']} is told"
        case _:
            return f"leaves the hub, held by {hop['by']} for {hop['service_s']:g} s{reason}"


def _event(event: Event, sample: int | None) -> Iterator[str]:
    match event["event"]:
        case "group.generated":
            chosen = range(len(event["lengths"])) if sample is None else [sample]
            ends = ", ".join(f"#{k} {event['lengths'][k]} tokens, {event['finishes'][k]}" for k in chosen)
            yield f"sampled with versions {event['versions']} in {event['seconds']:g} s: {ends}"
        case "group.judged":
            for verifier, columns in event["verdicts"].items():
                yield from _verdicts(verifier, columns, sample)
        case "group.texts":
            yield f"was asked: {event['prompt']!r}"
            for k, answer in enumerate(event["answers"]):
                if sample in (None, k):
                    yield f"answered #{k}: {answer!r}"
        case "group.trained" | "group.dropped":
            yield from _reckoning(event, sample)
        case "answer.refused":
            yield f"does not take a late answer of {event['name']}"
        case name:
            said = event.get("error") or event.get("reason") or ""
            yield f"{name}{': ' if said else ''}{said}"


def _verdicts(verifier: str, columns: dict[str, list[Any]], sample: int | None) -> Iterator[str]:
    rows = max((len(values) for key, values in columns.items() if key != "versions"), default=0)
    for row in range(rows):
        verdict = {key: values[row] for key, values in columns.items() if key != "versions"}
        k = verdict.get("samples", row)
        if sample is not None and k != sample:
            continue
        status, score = verdict.get("statuses", "ok"), verdict.get("scores")
        parts = [f"#{k}", "no score" if score is None else f"{score:g}", verdict.get("labels") or ""]
        if verdict.get("steps") is not None:
            parts.insert(1, f"step {verdict['steps']}")
        parts += [status if status != "ok" else "", verdict.get("errors") or "", verdict.get("rationales") or ""]
        yield f"{verifier} {'/'.join(columns['versions'])}: {' '.join(part for part in parts if part)}"


def _reckoning(event: Event, sample: int | None) -> Iterator[str]:
    if event["event"] == "group.trained":
        yield f"trained it at step {event['step']}, {event['staleness']} versions old; version {event['published']}"
    else:
        yield f"dropped it: {event['reason']}"
    for k, reward in enumerate(event.get("rewards", [])):
        if sample not in (None, k):
            continue
        channels = ", ".join(f"{name} {_number(values[k])}" for name, values in event["channels"].items())
        parts = [f"#{k} reward {_number(reward)} ({channels})"]
        for key in ("advantages", "corrections", "loss_weights"):
            if key in event:
                parts.append(f"{key[:-1].replace('_', ' ')} {_number(event[key][k])}")
        if problem := event.get("problems", {}).get(str(k)):
            parts.append(f"left out: {problem}")
        yield ", ".join(parts)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
