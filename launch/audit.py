"""Proves from a run's files alone that every task was trained exactly once, young enough, and in order where that is promised.

Three witnesses that know nothing of each other are compared: the hub's journal (what was issued), the learner's
ledger (what was trained, hash-linked), the committed checkpoints (which history survived). The surviving history is
the walk from the newest committed checkpoint's ledger head back to the root. Nothing here writes, and nothing imports
torch, so a live or a copied run can be audited.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final, TextIO

import msgspec

from safeladder.launch.config import ConfigError, load_resolved
from safeladder.launch.rundir import RunDirectory
from safeladder.launch.sections import Staleness
from safeladder.launch.terminal import console
from safeladder.policies import staleness
from safeladder.policies.ledger import Entry, Ledger, LedgerError
from safeladder.protocol import journal
from safeladder.protocol.messages import Work

SHOWN_IDS: Final = 10
_STEP_FOLDER: Final = re.compile(r"step-(\d{8,})")
_FEEDER_ID: Final = re.compile(r"\d{8,}-")
_REQUEUED_ID: Final = re.compile(r"~\d+$")  # a dead letter that was put back: it keeps its number and comes late


@dataclass(frozen=True)
class Rule:
    """One promise. problems: what breaks it, ids named; empty where it holds. skipped: why it could not be judged."""

    name: str
    fact: str
    problems: list[str] = field(default_factory=list)
    skipped: str | None = None

    @property
    def holds(self) -> bool:
        return not self.problems


class State(msgspec.Struct):
    """What the audit reads of a checkpoint's state.json."""

    step: int
    version: int
    ledger_head: str = ""
    feeder_cursor: int = 0


@dataclass
class Issued:
    """What the journal says of training work.

    sequences: id -> order of admission, where the submission is still recorded. ends: id -> how it left the hub.
    dead: id -> why it ended before its last stop. Of a finished work, a compacted journal keeps the end alone.
    """

    sequences: dict[str, int] = field(default_factory=dict)
    ends: dict[str, str] = field(default_factory=dict)
    dead: dict[str, str] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)
    _other: set[str] = field(default_factory=set)

    @property
    def ids(self) -> set[str]:
        """Everything that was issued. Where only an end is left of a work, the feeder's way of naming tells."""
        return set(self.sequences) | {i for i in self.ends if i not in self._other and _FEEDER_ID.match(i)}

    def outcome(self, *outcomes: str) -> set[str]:
        return {identity for identity in self.ids if self.ends.get(identity) in outcomes}

    @property
    def ended_early(self) -> set[str]:
        return {i for i in self.ids if i in self.dead or self.ends.get(i, "done") != "done"}

    def note(self, record: journal.Record) -> None:
        match record:
            case journal.Submitted() if not _is_training(record.work):
                self._other.add(record.id)
            case journal.Submitted():
                if record.id in self.sequences:
                    self.twice.append(record.id)
                self.sequences[record.id] = record.work.sequence
            case journal.Finished():
                self.ends[record.id] = record.outcome
            case journal.Dead():
                self.dead[record.id] = record.error


def audit(run: RunDirectory) -> list[Rule]:
    """Judges every rule. Raises ConfigError where there is no run, LedgerError or JournalError for a damaged file."""
    config = load_resolved(run.config)
    ledger = Ledger(run.ledger, read_only=True)
    state = newest_state(run.checkpoints)
    entries = ledger.entries()
    try:
        history = ledger.lineage(state.ledger_head) if state else []
    except LedgerError as error:
        return [Rule("checkpoint and ledger agree", "", [str(error)])]
    issued = read_journal(run.journal) if run.journal.exists() and config.hub.durability != "memory" else None
    return [
        _agree(state, history),
        _once(history),
        *_against_journal(history, issued),
        _young(history, config.staleness.eta),
        _complete(state, history, issued),
        *_ordered(state, history, config.staleness, config.learner.batch),
        _versions(entries),
    ]


def holds(rules: Sequence[Rule]) -> bool:
    return all(rule.holds for rule in rules)


def show(rules: Sequence[Rule], stream: TextIO) -> None:
    out = console(stream)
    width = max(len(rule.name) for rule in rules)
    for rule in rules:
        verdict = "skipped" if rule.skipped else "holds" if rule.holds else "BROKEN"
        out.print(f"{verdict:8}{rule.name:{width}}  {rule.skipped or rule.fact}", markup=False)
        for problem in rule.problems:
            out.print(f"{'':8}{problem}", markup=False)


# ---------------------------------------------------------------------------------------------------- the witnesses


def newest_state(checkpoints: Path) -> State | None:
    """state.json of the newest committed checkpoint; folders without the final name are uncommitted and passed over."""
    found = [
        (int(match[1]), path)
        for path in (checkpoints.iterdir() if checkpoints.is_dir() else ())
        if (match := _STEP_FOLDER.fullmatch(path.name)) and (path / "state.json").is_file()
    ]
    if not found:
        return None
    file = max(found)[1] / "state.json"
    try:
        return msgspec.json.decode(file.read_bytes(), type=State)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{file} is damaged: {error}") from None


def read_journal(path: Path) -> Issued:
    """What was issued on the way to the learner, and how it ended."""
    issued = Issued()
    for record in journal.read(path):
        issued.note(record)
    return issued


def _is_training(work: Work) -> bool:
    """Calls, evaluation and the end of the stream are not trained."""
    if work.lane != "training" or work.reply_to is not None:
        return False
    kind = msgspec.msgpack.decode(work.payload, type=dict[str, msgspec.Raw]).get("type")
    return kind is not None and msgspec.msgpack.decode(kind) in ("group", "skipped")


# -------------------------------------------------------------------------------------------------------- the rules


def _agree(state: State | None, history: Sequence[Entry]) -> Rule:
    """The checkpoint has made as many steps as its history has entries."""
    name = "checkpoint and ledger agree"
    if state is None:
        return Rule(name, "", skipped="no checkpoint is committed: nothing has survived yet")
    problems = []
    if state.step != len(history):
        problems = [f"the newest checkpoint has made {state.step} steps, its history holds {len(history)}"]
    return Rule(name, f"{len(history)} steps survive", problems)


def _once(history: Sequence[Entry]) -> Rule:
    """No id stands twice in the surviving history, whether trained or dropped."""
    counts = Counter(identity for entry in history for identity in (*entry.ids, *entry.dropped))
    again = [identity for identity, count in counts.items() if count > 1]
    fact = f"{sum(len(entry.ids) for entry in history)} tasks trained"
    return Rule("no task is trained twice", fact, _named("in the history more than once", again))


def _against_journal(history: Sequence[Entry], issued: Issued | None) -> Iterator[Rule]:
    known, balance = "nothing is trained that was not issued", "issued = trained + dropped + pending"
    if issued is None:
        reason = "the hub kept no journal (hub.durability: memory)"
        yield from (Rule(known, "", skipped=reason), Rule(balance, "", skipped=reason))
        return
    trained = {identity for entry in history for identity in entry.ids}
    dropped = {identity for entry in history for identity in entry.dropped}
    everything, ended = issued.ids, issued.ended_early
    yield Rule(known, f"{len(everything)} issued", _named("never issued", sorted((trained | dropped) - everything)))
    pending = everything - set(issued.ends) - set(issued.dead) - trained - dropped
    # the hub let it go because the learner said that a checkpoint has it; if none has, it is lost
    lost = sorted(issued.outcome("done", "skipped") - trained - dropped)
    both = sorted(trained & ended)
    noted = {i: reason for entry in history for i, reason in zip(entry.dropped, entry.reasons, strict=False)}
    reasons = Counter(
        issued.dead.get(i) or noted.get(i) or issued.ends.get(i) or "ended early" for i in dropped | ended
    )
    said = "".join(f", {count} for {reason.splitlines()[0][:60]!r}" for reason, count in reasons.most_common(3))
    fact = f"{len(everything)} = {len(trained)} + {len(dropped | ended)} + {len(pending)}{said}"
    yield Rule(
        balance,
        fact,
        _named("settled with the hub but not in the surviving history", lost)
        + _named("trained although it ended early", both)
        + _named("issued more than once", issued.twice),
    )


def _young(history: Sequence[Entry], eta: int) -> Rule:
    """No trained group is older than the bound."""
    ages = {identity: age for entry in history for identity, age in zip(entry.ids, entry.staleness, strict=False)}
    unmeasured = [identity for entry in history for identity in entry.ids[len(entry.staleness) :]]
    old = [f"{identity} ({age})" for identity, age in ages.items() if age > eta]
    problems = _named(f"older than eta = {eta}", old) + _named("without a recorded age", unmeasured)
    return Rule("nothing is trained too old", f"at most {max(ages.values(), default=0)}, allowed {eta}", problems)


def _complete(state: State | None, history: Sequence[Entry], issued: Issued | None) -> Rule:
    """Below the checkpoint's cursor every number was trained or dropped; each number beyond it comes again after a crash."""
    numbers = dict(issued.sequences) if issued else {}
    for entry in history:
        numbers |= zip(entry.dropped, entry.dropped_sequences, strict=False)
    ended = {identity for entry in history for identity in entry.dropped}
    unknown = len(ended - set(numbers))  # of an old ledger and a compacted journal together nobody knows
    ended |= issued.ended_early if issued else set()
    found = {number for entry in history for number in entry.sequences}
    found |= {numbers[identity] for identity in ended if identity in numbers}
    cursor = state.feeder_cursor if state else 0
    missing = sorted(set(range(cursor)) - found)
    problems = [] if len(missing) <= unknown else _named("neither trained nor dropped: numbers", map(str, missing))
    beyond = sum(number >= cursor for number in found)
    fact = f"up to sequence {cursor - 1}, {beyond} beyond"
    return Rule("nothing is passed over for good", fact, problems)


def _ordered(state: State | None, history: Sequence[Entry], bounds: Staleness, batch: int) -> Iterator[Rule]:
    """Trained in order of admission, as far as the staleness policy promises one."""
    if bounds.policy in ("drop", "wait"):
        yield Rule("trained in order", "", skipped=f"staleness.policy {bounds.policy} takes what comes first")
        return
    policy = staleness.create(bounds, batch)
    window = policy.window if isinstance(policy, staleness.Windowed) else 1
    earlier: list[int] = []
    problems, most = [], 0
    for entry in history:
        punctual = [
            n for identity, n in zip(entry.ids, entry.sequences, strict=True) if not _REQUEUED_ID.search(identity)
        ]
        problems += [f"{after} after {before}" for before, after in pairwise(punctual) if after <= before]
        for number in punctual:
            passed = len(earlier) - bisect(earlier, number)
            most = max(most, passed)
            if passed >= window:
                problems.append(f"{number} after {earlier[-1]}")
        earlier = sorted([*earlier[-window:], *punctual])
    cursor = state.feeder_cursor if state else 0  # it is still to come, and has been passed the most of all that are
    passed = sum(number > cursor for entry in history for number in entry.sequences)
    most = max(most, passed)
    if passed >= window:
        problems.append(f"{passed} before {cursor}, which is still to come")
    yield Rule(
        "trained in order", f"at most {most} passed another, allowed {window - 1}", _named("out of order", problems)
    )


def _versions(entries: Sequence[Entry]) -> Rule:
    """A version number stands for one set of weights for ever, also over roll-backs: branches are looked at too."""
    counts = Counter(entry.published for entry in entries)
    again = [str(version) for version, count in counts.items() if count > 1]
    behind = [str(entry.published) for entry in entries if entry.published <= entry.version]
    problems = _named("published more than once", again) + _named("not newer than what they were made from", behind)
    return Rule("no weight version is used twice", f"{len(counts)} published", problems)


def _named(what: str, ids: Iterable[str]) -> list[str]:
    """One line that names the culprits, the first ones of many."""
    found: Collection[str] = list(ids)
    if not found:
        return []
    more = f" and {len(found) - SHOWN_IDS} more" if len(found) > SHOWN_IDS else ""
    return [f"{what}: {', '.join(list(found)[:SHOWN_IDS])}{more}"]
