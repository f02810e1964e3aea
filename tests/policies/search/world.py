"""A small world with a known truth: an answer is a row of letters, right where it repeats the prompt's letters in order.

The policy writes the right letter with a known probability; its randomness depends on the draw's seed alone. The judge says how likely a
prefix is right, and may err on a share of prefixes that its name decides.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from safeladder.policies.search.base import Draw, Judgement
from safeladder.policies.search.intervene import CUES
from safeladder.policies.search.tree import Step


def own(text: str) -> str:
    """An answer without the cues that an intervention put into it."""
    for cue in CUES.values():
        text = text.replace(cue, "")
    return text


class Writer:
    """A `Sampler`: one letter a step, right with probability `skill`. The answer ends with the prompt's length."""

    def __init__(self, skill: float = 0.5) -> None:
        self.skill = skill
        self.calls = 0

    async def draw(self, requests: Sequence[Draw]) -> list[list[Step]]:
        self.calls += 1
        return [[self._step(request, index) for index in range(request.count)] for request in requests]

    def _step(self, request: Draw, index: int) -> Step:
        dice = random.Random(f"{request.seed}/{index}")
        place, new = len(own(request.text)), ""
        most = len(request.prompt) - place if request.whole else 1
        while len(new) < min(most, request.max_new_tokens):
            new += request.prompt[place + len(new)] if dice.random() < self.skill else dice.choice("xyz")
        final = place + len(new) >= len(request.prompt)
        return Step(new, tuple(map(ord, new)), (-0.5,) * len(new), final=final, versions=(3,) * len(new))


class Reader:
    """A `Judge`: safety and knowledge of a prefix. `blind`: letters on which it fails. `unsafe`: letters that are unsafe."""

    def __init__(self, error: float = 0.0, blind: str = "", unsafe: str = "") -> None:
        self.error, self.blind, self.unsafe = error, blind, unsafe
        self.calls = 0

    async def judge(self, requests: Sequence[Judgement]) -> list[Mapping[str, float] | None]:
        self.calls += 1
        return [self._scores(request) for request in requests]

    def _scores(self, request: Judgement) -> dict[str, float] | None:
        text = own(request.text)
        if any(letter in self.blind for letter in text):
            return None
        right = sum(a == b for a, b in zip(text, request.prompt, strict=False)) / max(1, len(text))
        if random.Random(text).random() < self.error:
            right = 1 - right
        return {"knowledge": right, "safety": 0.05 if any(letter in self.unsafe for letter in request.last) else 0.95}
