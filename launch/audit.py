"""Proves from a run's files alone that every task was trained exactly once, in order, and young enough.

Three witnesses that know nothing of each other are compared: the hub's journal (what was issued), the learner's
ledger (what was trained, hash-linked), the committed checkpoints (which history survived). The surviving history is
the walk from the newest committed checkpoint's ledger head back to the root. Nothing here writes, and nothing imports
torch, so a live or a copied run can be audited.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TextIO

import msgspec
from rich.console import Console
from rich.table import Table

from safeladder.launch.config import ConfigError, load_resolved
from safeladder.launch.rundir import RunDirectory
from safeladder.policies.ledger import Entry, Ledger, LedgerError
from safeladder.protocol import journal

SHOWN_IDS: Final = 10
_STEP_FOLDER: Final = re.compile(r"step-(\d{8,})")


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
    """What the journal says. `ends` maps ids to how they left the hub; a work that is in none of the sets is pending."""

    sequences: dict[str, int] = field(default_factory=dict)
    ends: dict[str, str] = field(default_factory=dict)
    dead: dict[str, str] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)


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
        _ordered(history),
        _versions(entries),
    ]


def holds(rules: Sequence[Rule]) -> bool:
    return all(rule.holds for rule in rules)


def show(rules: Sequence[Rule], stream: TextIO) -> None:
    console = Console(file=stream, highlight=False, soft_wrap=True)
    table = Table("", "rule", "found", box=None)
    for rule in rules:
        verdict = "skipped" if rule.skipped else "holds" if rule.holds else "BROKEN"
        table.add_row(verdict, rule.name, rule.skipped or rule.fact)
        for problem in rule.problems:
            table.add_row("", "", f"  {problem}")
    console.print(table)


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
    """What was issued on the way to the learner, and how it ended. Calls, and the end of stream, are not training work."""
    issued = Issued()
    for record in journal.read(path):
        match record:
            case journal.Submitted() if record.work.lane == "training" and record.work.reply_to is None:
                if not _is_group(record.work.payload):
                    continue
                if record.id in issued.sequences:
                    issued.twice.append(record.id)
                issued.sequences[record.id] = record.work.sequence
            case journal.Finished():
                issued.ends[record.id] = record.outcome
            case journal.Dead():
                issued.dead[record.id] = record.error
    return issued


def _is_group(payload: msgspec.Raw) -> bool:
    kind = msgspec.msgpack.decode(payload, type=dict[str, msgspec.Raw]).get("type")
    return kind is not None and msgspec.msgpack.decode(kind) == "group"


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
    unknown = sorted((trained | dropped) - set(issued.sequences))
    yield Rule(known, f"{len(issued.sequences)} issued", _named("never issued", unknown))
    done = {identity for identity, outcome in issued.ends.items() if outcome == "done"}
    ended = {i for i in issued.sequences if i in issued.dead or (i in issued.ends and i not in done)}
    pending = set(issued.sequences) - set(issued.ends) - set(issued.dead) - trained - dropped
    # the hub let it go as done, and no surviving history has it: that is a lost task
    lost = sorted((done & set(issued.sequences)) - trained - dropped)
    both = sorted(trained & ended)
    reasons = Counter(
        issued.dead.get(identity) or issued.ends.get(identity) or "ended early" for identity in dropped | ended
    )
    said = "".join(f", {count} for {reason.splitlines()[0][:60]!r}" for reason, count in reasons.most_common(3))
    fact = f"{len(issued.sequences)} = {len(trained)} + {len(dropped | ended)} + {len(pending)}{said}"
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


def _ordered(history: Sequence[Entry]) -> Rule:
    """Trained in order of admission; the numbers missing in between are as many as were dropped."""
    sequences = [sequence for entry in history for sequence in entry.sequences]
    falling = [
        f"{after} after {before}" for before, after in zip(sequences, sequences[1:], strict=False) if after <= before
    ]
    dropped = sum(len(entry.dropped) for entry in history)
    missing = sorted(set(range(max(sequences, default=-1) + 1)) - set(sequences))
    problems = _named("out of order", falling)
    if len(missing) > dropped:
        problems += _named(f"{dropped} tasks were dropped, but these sequence numbers are missing", map(str, missing))
    return Rule(
        "trained in order, without gaps", f"up to sequence {max(sequences, default=-1)}, {dropped} dropped", problems
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
