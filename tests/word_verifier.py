"""For the tests: a verifier that reads words, one that cannot be relied on, and a template for a judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from safeladder.protocol.messages import Verdict
from safeladder.verifiers.contract import Item, Verifier
from safeladder.verifiers.rows import Row


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


class StartedVerifier(WordVerifier):
    """Judges only between `start` and `stop`, and counts both."""

    calls: ClassVar[list[str]] = []

    def start(self) -> None:
        self.calls.append("start")

    def judge_one(self, item: Item) -> Verdict:
        if self.calls[-1] != "start":
            raise RuntimeError("not started")
        return super().judge_one(item)

    def stop(self) -> None:
        self.calls.append("stop")


class PlaceVerifier(Verifier):
    """Judges by the place in the batch, which no verifier may."""

    name, version, principle = "place", "1", "safety"

    def judge(self, items: Sequence[Item]) -> list[Verdict]:
        return [self.ok(item, float(index % 2)) for index, item in enumerate(items)]


def ask(row: Row) -> tuple[str, str] | None:
    """A template for a judge: the text itself, and one word about it. It asks nothing of a text that says "pass"."""
    return None if "pass" in row.text else (row.text, "bad" if row.truth else "good")
