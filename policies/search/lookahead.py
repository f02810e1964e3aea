"""Beam search whose candidates are judged by what may come after them: each is continued by up to `depth` steps, and the value at the
end of that look ahead counts for the candidate (Snell et al. 2024, section 5.2, with sampled in place of greedy continuations).

Better values for more tokens: what is seen ahead is thrown away, except that a look ahead that completed the answer stays in the tree as
an answer that may be chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

from safeladder.policies.search.base import Search, Strategy
from safeladder.policies.search.tree import Node


class Lookahead(Strategy):
    name = "lookahead"

    @dataclass(frozen=True)
    class Options:
        width: int = 2
        candidates: int = 4
        depth: int = 1

    async def run(self, search: Search) -> None:
        beam = [search.tree.root]
        while beam and not search.stopped:
            count = self.options.candidates * (self.options.width if beam[0].parent is None else 1)
            children = [child for each in await search.expand(beam, count) for child in each]
            foreseen = await self._foresee(search, [node for node in children if node.eligible])
            ranked = sorted(foreseen, key=lambda pair: -pair[1])
            for node, _ in ranked[self.options.width :]:
                if node.fate == "open":
                    node.fate, node.reason = "pruned", f"not among the best {self.options.width}"
            beam = [node for node, _ in ranked[: self.options.width] if node.fate == "open"]

    async def _foresee(self, search: Search, nodes: list[Node]) -> list[tuple[Node, float]]:
        """Each node with the score at the end of its look ahead; without one where the ahead was vetoed or unscored."""
        ends = list(nodes)
        for _ in range(self.options.depth):
            growing = [index for index, end in enumerate(ends) if end.fate == "open" and end.eligible]
            if not growing or search.stopped:
                break
            grown = await search.expand([ends[index] for index in growing], 1)
            for index, children in zip(growing, grown, strict=True):
                if children:
                    ends[index] = children[0]
        for node, end in zip(nodes, ends, strict=True):
            if end is not node and end.fate == "open":
                end.fate, end.reason = "pruned", "seen ahead only"
        return [
            (node, end.score) for node, end in zip(nodes, ends, strict=True) if end.eligible and end.score is not None
        ]
