"""The gates that a demonstration passes before anything learns from it, in order. Each gives a reason for what it keeps out.

    schema -> answer -> safety of the answer and of the thought -> language -> redundancy -> leakage

Verifiers are those of training rewards, called as there: a verifier that fails, or has no verdict where one is needed, keeps a
demonstration
out. The order and the thresholds follow our reading of SafeWork-R1 (the paper names the validation without a procedure).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from safeladder.launch.evaluation.suites.over_refusal import REFUSALS
from safeladder.launch.evaluation.suites.safety import BORDERLINE, harmful
from safeladder.policies.search.deliberate import grammar
from safeladder.protocol.messages import Record, Verdict
from safeladder.verifiers import contract, registry
from safeladder.verifiers.contract import OPEN, Item, Verifier
from safeladder.verifiers.training.stages.duplicates import exact_duplicates, near_duplicates
from safeladder.verifiers.training.stages.leakage import LeakageGate

TIMEOUT_S: Final = 600.0
UNSAFE: Final = "Unsafe"
NEEDLESS: Final = "Unnecessary refusal"
RULES: Final = (
    "choice",
    "match",
    "boxed",
    "instruction",
)  # that compare an answer with a reference, first fitting first


@dataclass(frozen=True)
class Demonstration:
    """A record with what is to be learned: `text` begins with the thought's tag."""

    record: Record
    text: str

    @property
    def item(self) -> Item:
        """For verifiers. Of a trajectory the answer is what its last turn says, and the thought is all its turns think."""
        trajectory = grammar.parse(self.text)
        if trajectory.answer is None:
            return Item(self.record, self.text)
        thought = " ".join(turn.think.strip() for turn in trajectory.turns)
        return Item(self.record, f"{OPEN}{thought}{contract.CLOSE} {trajectory.answer}")


@dataclass
class GateOptions:
    """verifiers: role -> options, `kind` naming another than the role's own; null switches a role off. knowledge: options of a judge
    that grades
    answers which no rule can; None: those pass ungraded, and are counted. threshold: its score from which on an answer is right.

    near_prompts, near_thoughts: similarity from which on two are one. A pair of them is one demonstration too many only if both are near.
    near_evaluation, shared_evaluation: of the leakage gate, similarity and share of word n-grams from which on a prompt leaks.
    """

    verifiers: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    knowledge: dict[str, Any] | None = None
    threshold: float = field(default=0.8, metadata={"low": 0.0, "high": 1.0})
    near_prompts: float = field(default=0.8, metadata={"above": 0.0, "high": 1.0})
    near_thoughts: float = field(default=0.9, metadata={"above": 0.0, "high": 1.0})
    near_evaluation: float = field(default=0.8, metadata={"above": 0.0, "high": 1.0})
    shared_evaluation: float = field(default=0.5, metadata={"above": 0.0, "high": 1.0})


# What a gate says of each demonstration: None where it passes, else why not.
Reasons = list[str | None]
Gate = Callable[[Sequence[Demonstration]], Reasons]


class Gates:
    """All gates of one build. `warnings` counts what passed though nobody could say it is right, or is the weaker of two good kinds."""

    def __init__(self, options: GateOptions, evaluation: Sequence[str]) -> None:
        """evaluation: texts of which nothing may be learned. Raises UnknownVerifier, BadOptions."""
        self._options = options
        self._leaks = LeakageGate(evaluation, options.near_evaluation, share=options.shared_evaluation)
        self._verifiers: dict[str, Verifier] = {}
        self.warnings: dict[str, int] = {}

    def __iter__(self) -> Any:
        yield "schema", self.schema
        yield "answer", self.answer
        yield "safety", self.safety
        yield "language", self.language
        yield "redundancy", self.redundancy
        yield "leakage", self.leakage

    def schema(self, rows: Sequence[Demonstration]) -> Reasons:
        """One thought and one answer; or a well-formed trajectory."""
        found: Reasons = []
        for row, verdict in zip(rows, self._judge("format", [Item(r.record, r.text) for r in rows]), strict=True):
            trajectory = grammar.parse(row.text)
            if trajectory.answer is not None:
                found.append(trajectory.faults[0] if trajectory.faults else None)
            else:
                found.append(_below(verdict, 1.0))
        return found

    def answer(self, rows: Sequence[Demonstration]) -> Reasons:
        """Right where there is a reference: by the rule that reads it, else by the judge. A trajectory may be wrong if it says so
        (unsure)."""
        found: Reasons = [None] * len(rows)
        for index, row in enumerate(rows):
            if row.record.reference is None or (
                (sure := grammar.parse(row.text).confidence) is not None and sure <= grammar.CERTAIN
            ):
                continue
            verdicts = [self._judge(name, [row.item])[0] for name in _rules(row.record)]
            usable = next((verdict for verdict in verdicts if verdict.status == "ok"), None)
            found[index] = self._graded(row) if usable is None else _below(usable, 1.0)
        return found

    def _graded(self, row: Demonstration) -> str | None:
        if self._options.knowledge is None:
            self._warn("answer not graded: no rule reads its reference, and there is no judge")
            return None
        return _below(self._judge("knowledge_judge", [row.item], self._options.knowledge)[0], self._options.threshold)

    def safety(self, rows: Sequence[Demonstration]) -> Reasons:
        """Neither answer nor thought is unsafe, and no request that is known to be harmless is refused."""
        answers = self._judge("safety", [row.item for row in rows])
        thoughts = self._judge("safety", [Item(row.record, row.item.thought) for row in rows])
        found: Reasons = []
        for row, answer, thought in zip(rows, answers, thoughts, strict=True):
            for part, verdict in (("answer", answer), ("thought", thought)):
                if verdict.status != "ok":
                    found.append(
                        f"the {part}'s safety is unknown: {verdict.error or verdict.rationale or verdict.status}"
                    )
                    break
                if verdict.label == UNSAFE:
                    found.append(f"unsafe {part}")
                    break
            else:
                needless = harmless(row.record) and answer.label in REFUSALS
                found.append("needless refusal" if needless else None)
                if harmful(row.record) and answer.label in REFUSALS:
                    self._warn("a bare refusal of harm: a warning with a way out earns more in training")
        return found

    def language(self, rows: Sequence[Demonstration]) -> Reasons:
        verdicts = self._judge("language", [row.item for row in rows])
        return [None if verdict.status == "abstain" else _below(verdict, 1.0) for verdict in verdicts]

    def redundancy(self, rows: Sequence[Demonstration]) -> Reasons:
        """Says nothing again and again, and nothing that another demonstration says to nearly the same question."""
        verdicts = self._judge("repetition", [row.item for row in rows])
        repetitive = [_below(verdict, 0.0) for verdict in verdicts]
        prompts, thoughts = [row.record.prompt for row in rows], [row.item.thought for row in rows]
        near = near_duplicates(prompts, [row.record.label for row in rows], self._options.near_prompts)
        first = exact_duplicates(prompts)
        found: Reasons = []
        for index, (why, kept) in enumerate(zip(repetitive, near, strict=True)):
            if why is None and first[index] != index:
                why = f"the same prompt as {rows[first[index]].record.id}"
            elif (
                why is None
                and kept is not None
                and _alike(thoughts[kept], thoughts[index], self._options.near_thoughts)
            ):
                why = f"nearly the same as {rows[kept].record.id}"
            found.append(why)
        return found

    def leakage(self, rows: Sequence[Demonstration]) -> Reasons:
        leaks = [self._leaks.leak(row.record.prompt) for row in rows]
        return [None if leak is None else f"its prompt is in an evaluation set ({leak})" for leak in leaks]

    # ---------------------------------------------------------------------------------------------------- verifiers

    def _judge(self, role: str, items: Sequence[Item], options: Mapping[str, Any] | None = None) -> list[Verdict]:
        """One verdict an item; an abstention where the role is switched off counts as passing nothing on."""
        if role not in self._verifiers:
            given = dict(options or self._options.verifiers.get(role) or {})
            verifier = registry.create(role, given)
            verifier.start()
            self._verifiers[role] = verifier
        return contract.run([self._verifiers[role]], items, TIMEOUT_S)

    def _warn(self, what: str) -> None:
        self.warnings[what] = self.warnings.get(what, 0) + 1


def harmless(record: Record) -> bool:
    """Whether a refusal of it is needless, as far as the record says."""
    return not harmful(record) and (
        record.label == "normal" or record.category == BORDERLINE or record.extra.get("harmful") is False
    )


def _rules(record: Record) -> tuple[str, ...]:
    if record.choices:
        return ("choice",)
    return ("boxed",) if record.label in ("general_rule", "geo3k_rule", "gsm8k_rule") else ("match", "boxed")


def _below(verdict: Verdict, least: float) -> str | None:
    """Why a verdict does not reach the score `least`; None where it does."""
    if verdict.status != "ok" or verdict.score is None:
        return f"{verdict.verifier}: {verdict.status}{f' ({verdict.error})' if verdict.error else ''}"
    return None if verdict.score >= least - 1e-9 else f"{verdict.verifier}: {verdict.label or verdict.score}"


def _alike(one: str, other: str, threshold: float) -> bool:
    return near_duplicates([one, other], [0, 0], threshold)[1] is not None
