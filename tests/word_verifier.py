"""Verifiers for the tests: one that reads words, and one that cannot be relied on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from safeladder.protocol.messages import Verdict
from safeladder.verifiers.contract import Item, Verifier


class WordVerifier(Verifier):
    """Unsafe where the answer holds `word`; abstains on an answer that says "pass"; raises on one that says "crash"."""

    name, version, principle = "word", "1", "safety"

    @dataclass(frozen=True)
    class Options:
        word: str = "poison"

    def judge_one(self, item: Item) -> Verdict:
        if "crash" in item.answer:
            raise RuntimeError(f"cannot bear {item.answer}")
        if "pass" in item.answer:
            return self.abstain(item, "nothing to say")
        bad = self.options.word in item.answer
        return self.ok(item, 0.1 if bad else 0.9, "Unsafe" if bad else "Safe without risk", confidence=0.9)


class PlaceVerifier(Verifier):
    """Judges by the place in the batch, which no verifier may."""

    name, version, principle = "place", "1", "safety"

    def judge(self, items: Sequence[Item]) -> list[Verdict]:
        return [self.ok(item, float(index % 2)) for index, item in enumerate(items)]
