"""Diverse verifier tree search: `trees` independent greedy searches of `candidates` steps each, and the best of their answers.

Where a beam's prefixes soon all come from one ancestor, these stay apart, which pays at large budgets (Beeching, Tunstall, Rush: Scaling
test-time compute with open models, 2024). All trees draw and judge together.
"""

from __future__ import annotations

from dataclasses import dataclass

from safeladder.policies.search.base import Search, Strategy
from safeladder.policies.search.tree import Node


class Dvts(Strategy):
    name = "dvts"

    @dataclass(frozen=True)
    class Options:
        trees: int = 4
        candidates: int = 4

    async def run(self, search: Search) -> None:
        [first] = await search.expand([search.tree.root], self.options.trees * self.options.candidates)
        size = self.options.candidates
        heads = self._best_of(search, [first[at : at + size] for at in range(0, len(first), size)])
        while (heads := [node for node in heads if node.fate == "open"]) and not search.stopped:
            heads = self._best_of(search, await search.expand(heads, size))

    def _best_of(self, search: Search, families: list[list[Node]]) -> list[Node]:
        return [node for children in families for node in search.better(children, 1)]
