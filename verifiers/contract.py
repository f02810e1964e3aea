"""The contract of a verifier, ours or a user's own.

A minimal verifier is one class:

    class Polite(Verifier):
        name, version, principle = "polite", "1", "value"

        def judge_one(self, item: Item) -> Verdict:
            return self.ok(item, float("please" in item.answer.lower()))

named in `cluster.yaml` as `my_package.my_module:Polite`. One that works on batches overrides `judge` instead; one that waits (for an
engine, for a server) overrides `judge_async`, and all its items are judged at once.

`run` is the only way in which a verifier is called. Whatever the verifier does, each item gets one verdict, and only a finite
score within the declared range ever comes out as a score: everything else is a status (`guard.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from safeladder.protocol.messages import Record, Verdict
from safeladder.verifiers import guard

CLOSE = "</think>"
OPEN = "<think>"


@dataclass(frozen=True)
class Item:
    """One completion to judge, or one step of it.

    `text` is all that the assistant said: the prefix it was given and what it wrote. `sample` is the index into the group's
    completions. `language` is the record's unless given. `certainty` is how sure the policy was of its answer, in (0, 1], where known:
    exp of the mean log-probability of the answer's tokens.

    A step has its number in `step`, counted within what the policy wrote; `text` then ends with the step, which begins at
    character `begin`: what stands before is its context.
    """

    record: Record
    text: str
    sample: int = 0
    finish: str = "stop"  # stop, length, abort, error
    language: str = ""
    step: int | None = None
    begin: int = 0
    certainty: float | None = None

    def __post_init__(self) -> None:
        if not self.language:
            object.__setattr__(self, "language", self.record.language)

    @cached_property
    def answer(self) -> str:
        """What follows the last `</think>`, or the whole text where there is none; no space around it. Of a step: its own text."""
        if self.step is not None:
            return self.text[self.begin :].replace(OPEN, "").replace(CLOSE, "").strip()
        return self.text.rpartition(CLOSE)[2].strip()

    @cached_property
    def thought(self) -> str:
        """What stands before the last `</think>`, without the first `<think>`; empty where no thought was closed; empty of a step."""
        if self.step is not None:
            return ""
        before = self.text.rpartition(CLOSE)[0]
        return before.partition(OPEN)[2].strip() if OPEN in before else before.strip()


class Verifier:
    """Judges completions and steps. Subclasses set `name`, `version`, `principle` and write `judge_one`, `judge` or `judge_async`.

    `low` and `high` bound the score. `version` changes whenever the same text may be judged otherwise. `Options` is a dataclass,
    read strictly from the configuration by `registry.create`. A verifier keeps no state between calls: judging the same
    item again gives the same verdict, so that a verdict may be taken from the cache instead.
    """

    name: str
    version: str
    principle: ClassVar[str]  # safety, value, knowledge, helpfulness, rules, process
    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0
    reads_certainty: bool = False  # else the cache leaves `Item.certainty` out of what a verdict depends on

    @dataclass(frozen=True)
    class Options:
        """No options."""

    def __init__(self, options: Any = None) -> None:
        self.options: Any = self.Options() if options is None else options

    @classmethod
    def signature(cls, name: str | None = None) -> str:
        """What verdicts are signed with; `name` is the option of that name, which judges heed."""
        return cls.name

    def start(self) -> None:
        """Loads what judging needs. Called once before the first item, without a time limit; may take minutes."""

    def stop(self) -> None:
        """Frees what `start` took."""

    def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict an item, in the items' order. Called by one thread at a time."""
        return [self.judge_one(item) for item in items]

    def judge_one(self, item: Item) -> Verdict:
        """The verdict on one item."""
        raise NotImplementedError(f"{type(self).__name__} overrides none of judge, judge_one, judge_async")

    async def judge_async(self, item: Item) -> Verdict:
        """The verdict on one item, of many that are judged at once. Runs on the loop of `loop.py`, which it must not block.
        A TimeoutError is a time-out, any other exception an error; what lasts too long is cancelled."""
        raise NotImplementedError

    @property
    def waits(self) -> bool:
        """Whether this verifier judges through `judge_async`."""
        return type(self).judge_async is not Verifier.judge_async

    def ok(
        self,
        item: Item,
        score: float,
        label: str | None = None,
        *,
        confidence: float | None = None,
        rationale: str | None = None,
        target: Literal["answer", "thought", "step"] = "answer",
    ) -> Verdict:
        """A verdict with a score in [`low`, `high`]. On a step, the target is the step."""
        return Verdict(
            sample=item.sample,
            verifier=self.name,
            version=self.version,
            principle=self.principle,
            status="ok",
            target=target if item.step is None else "step",
            step=item.step,
            label=label,
            score=score,
            low=self.low,
            high=self.high,
            confidence=confidence,
            rationale=rationale,
        )

    def abstain(self, item: Item, reason: str) -> Verdict:
        """This verifier has nothing to say of this item, and why."""
        return guard.without_score(self, item, "abstain", rationale=reason)


def run(verifiers: Sequence[Verifier], items: Sequence[Item], timeout_s: float) -> list[Verdict]:
    """All verdicts of all verifiers: for each verifier, one an item, in the items' order. Never raises for what a verifier does.

    Each verifier has `timeout_s` seconds for all its items. A batch that raises is judged again item by item, so that one item
    that a verifier cannot bear costs the others nothing. Status `error`: an exception, or a verdict that breaks the
    contract. Status `timeout`: no answer in time.
    """
    return [verdict for verifier in verifiers for verdict in guard.judge(verifier, items, timeout_s)]
