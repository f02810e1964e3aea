"""Intervention by principled value models: a cheap monitor at every step, a search where it is needed. **Ours**: the paper says that value
models for safety, value and knowledge guard each step, and gives no algorithm.

    1. One candidate for the next step is drawn and judged. While its safety stays at `warn` or above, and has not fallen by
       more than `drop` since the step before, it is kept: the price of a calm answer is that of plain sampling.
    2. Otherwise `candidates` in all are drawn and the best that passes is kept.
    3. If none passes, a reflection cue is put into the answer and the step is drawn again, up to `reflections` times.
    4. If that does not help either, the answer is given up for `fallback`, a safe completion.

A candidate passes when it was judged, is not vetoed and its safety is at least `safe`. What could not be judged never passes: a
verifier that fails leads to the fallback, not to an unchecked answer. Every act is noted, so that the rate of interventions on
harmless prompts (false interventions) can be counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from safeladder.policies.search.base import Note, Search, Strategy
from safeladder.policies.search.scoring import SAFETY
from safeladder.policies.search.tree import Node

CUES = {
    "en": "Wait. Let me check whether this could harm someone, and what a careful answer would be. ",
    "zh": "等一下，先想想这会不会伤害到别人，怎样回答才稳妥。",
}
FALLBACKS = {
    "en": "I can't help with that, because it could hurt someone. I'm glad to help with a safe way to reach a related goal.",
    "zh": "这可能会伤害到他人，所以我不能提供帮助。如果您有安全的相关需求，我很乐意协助。",
}


class Intervene(Strategy):
    name = "intervene"

    @dataclass(frozen=True)
    class Options:
        """`warn`, `drop`, `safe`: in units of the safety estimate, [0, 1]. `cue`, `fallback`: None is that of `language`."""

        candidates: int = 4
        warn: float = 0.5
        drop: float = 0.3
        safe: float = 0.5
        reflections: int = 1
        language: str = "en"
        cue: str | None = None
        fallback: str | None = None

    async def run(self, search: Search) -> None:
        node = search.tree.root
        while node.fate == "open" and not search.stopped:
            [children] = await search.expand([node], 1)
            if not children:
                return
            alarm = self._alarm(node, children[0])
            node = children[0] if alarm is None else await self._intervene(search, node, children, alarm)

    def choose(self, search: Search) -> Node | None:
        given_up = [node for node in search.tree.finals() if not node.step.own]
        return given_up[-1] if given_up else super().choose(search)

    def _alarm(self, before: Node, child: Node) -> str | None:
        """Why this step must not pass without a search, or None."""
        if not child.eligible:
            return child.reason
        safety, earlier = child.scores.get(SAFETY, 1.0), before.scores.get(SAFETY)
        if safety < self.options.warn:
            return f"safety {safety:.2f} below {self.options.warn:.2f}"
        if earlier is not None and earlier - safety > self.options.drop:
            return f"safety fell from {earlier:.2f} to {safety:.2f}"
        return None

    async def _intervene(self, search: Search, node: Node, children: list[Node], alarm: str) -> Node:
        """The node to go on from: a step that passes, or the fallback."""
        depth = len(node.place)
        search.notes.append(Note("searched", depth, alarm))
        [more] = await search.expand([node], self.options.candidates - 1)
        kept = self._passing(search, [*children, *more])
        origin = node
        for _ in range(self.options.reflections):
            if kept is not None or search.stopped:
                break
            search.notes.append(Note("reflected", depth, f"none of {self.options.candidates} candidates passes"))
            origin = search.insert(origin, self.options.cue or _in(self.options.language, CUES))
            [again] = await search.expand([origin], self.options.candidates)
            kept = self._passing(search, again)
        if kept is not None:
            return kept
        search.notes.append(Note("fell back", depth, "no step passes"))
        return search.insert(
            search.tree.root, self.options.fallback or _in(self.options.language, FALLBACKS), final=True
        )

    def _passing(self, search: Search, candidates: list[Node]) -> Node | None:
        """The best candidate that passes; what does not is pruned with the reason."""
        for node in candidates:
            if node.eligible and node.scores.get(SAFETY, 1.0) < self.options.safe:
                node.fate, node.reason = "vetoed", f"safety {node.scores[SAFETY]:.2f} below {self.options.safe:.2f}"
        return next(iter(search.better(candidates, 1)), None)


def _in(language: str, texts: dict[str, str]) -> str:
    return texts.get(language, texts["en"])
