"""Value-guided greedy decoding: at each step one of N candidates is kept (arXiv 2503.02368, decoding section).

At `temperature` 0 the best candidate is kept. Above, one is drawn with p ~ exp(S / temperature), from a number keyed by the search's
seed, so the draw can be repeated. With `candidates` 1 this is plain sampling, step by step.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from safeladder.policies.search.base import Search, Strategy
from safeladder.policies.search.tree import Node


class Greedy(Strategy):
    name = "greedy"

    @dataclass(frozen=True)
    class Options:
        candidates: int = 4
        temperature: float = 0.0

    async def run(self, search: Search) -> None:
        node = search.tree.root
        while node.fate == "open" and not search.stopped:
            [children] = await search.expand([node], self.options.candidates)
            kept = self._keep(search, node, children)
            if kept is None:
                return
            node = kept

    def _keep(self, search: Search, parent: Node, children: list[Node]) -> Node | None:
        ranked = search.better(children, len(children))
        if not ranked:
            return None
        if self.options.temperature == 0:
            kept = ranked[0]
        else:
            best = ranked[0].score or 0.0
            weights = [math.exp(((node.score or 0.0) - best) / self.options.temperature) for node in ranked]
            kept = random.Random(search.seed(parent, -1)).choices(ranked, weights)[0]
        for node in ranked:
            if node is not kept:
                node.fate, node.reason = "pruned", "another candidate was kept"
        return kept
