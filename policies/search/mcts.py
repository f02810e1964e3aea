"""Monte-Carlo tree search (UCT in the form of Silver et al. 2017 with a uniform prior), its values from the judges.

A round walks from the root to an open leaf by the largest Q + U, draws and judges `candidates` children of it, plays the best one out to
the end of the answer, and adds the mean of the child's and the end's squashed scores to every node above. Played out answers
may be chosen, so there is something to give after the first round. `parallel` leaves share their calls: a leaf that was picked
counts as visited with value 0 until it is judged, so that the next walk goes elsewhere (virtual loss).

    Q = mean of the values below a node,   U = exploration * sqrt(visits of the parent) / (1 + visits)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from safeladder.policies.search.base import Search, Strategy
from safeladder.policies.search.scoring import squash
from safeladder.policies.search.tree import Node


@dataclass(slots=True)
class _Count:
    visits: int = 0
    total: float = 0.0


class Mcts(Strategy):
    name = "mcts"

    @dataclass(frozen=True)
    class Options:
        rounds: int = 16
        candidates: int = 4
        parallel: int = 2
        exploration: float = 0.7

    async def run(self, search: Search) -> None:
        counts: dict[int, _Count] = {0: _Count()}
        below: dict[int, list[Node]] = {}
        for _ in range(self.options.rounds):
            leaves = self._leaves(search, counts, below)
            if not leaves or search.stopped:
                return
            expanded = await search.expand(leaves, self.options.candidates)
            for leaf, children in zip(leaves, expanded, strict=True):
                below[leaf.number] = sorted((c for c in children if c.eligible), key=lambda c: -(c.score or 0.0))
            played = [below[leaf.number][0] for leaf in leaves if below[leaf.number]]
            ends = await search.expand([node for node in played if node.fate == "open"], 1, whole=True)
            seen = {end.parent: end for each in ends for end in each}
            for leaf in leaves:
                self._learn(search, leaf, below[leaf.number][:1], seen, counts)

    def _leaves(self, search: Search, counts: dict[int, _Count], below: dict[int, list[Node]]) -> list[Node]:
        """Up to `parallel` different leaves to expand; each already counts as visited."""
        leaves: list[Node] = []
        for _ in range(self.options.parallel):
            leaf = self._walk(search.tree.root, counts, below, leaves)
            if leaf is None:
                break
            leaves.append(leaf)
            for node in [search.tree.root, *search.tree.path(leaf)]:
                counts.setdefault(node.number, _Count()).visits += 1
        return leaves

    def _walk(
        self, node: Node, counts: dict[int, _Count], below: dict[int, list[Node]], taken: list[Node]
    ) -> Node | None:
        """The most promising leaf below `node` that can be expanded and is not `taken`; None when there is none."""
        if node.number not in below:
            return node if node.fate == "open" and node not in taken else None
        visits = counts[node.number].visits
        for child in sorted(below[node.number], key=lambda child: -self._promise(child, counts, visits)):
            if (leaf := self._walk(child, counts, below, taken)) is not None:
                return leaf
        return None

    def _promise(self, node: Node, counts: dict[int, _Count], parent_visits: int) -> float:
        count = counts.get(node.number, _Count())
        mean = count.total / count.visits if count.visits else squash(node.score or 0.0)
        return mean + float(self.options.exploration) * math.sqrt(parent_visits) / (1 + count.visits)

    def _learn(
        self, search: Search, leaf: Node, best: list[Node], ends: dict[int | None, Node], counts: dict[int, _Count]
    ) -> None:
        """Replaces the leaf's virtual loss by what its best child and that child's end are worth, up to the root."""
        judged = [node for child in best for node in (child, ends.get(child.number, child))]
        values = [squash(node.score or 0.0) if node.eligible else 0.0 for node in judged]
        mean = sum(values) / len(values) if values else 0.0
        for node in [search.tree.root, *search.tree.path(leaf)]:
            counts[node.number].total += mean
