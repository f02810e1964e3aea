"""Best-of-N: of N independent whole answers, the one that the judges like best.

`choice`: "best" takes the highest score; "majority" the most frequent answer, whatever its score (self-consistency, Wang et al. 2022);
"weighted" the answer whose copies have the highest sum of scores, squashed to (0, 1) (weighted best-of-N, Li et al. 2022). Of the
copies of the answer that wins, the best-scored one is given.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from safeladder.policies.search.base import Search, Strategy
from safeladder.policies.search.scoring import squash
from safeladder.policies.search.tree import Node


class BestOfN(Strategy):
    name = "best_of_n"

    @dataclass(frozen=True)
    class Options:
        n: int = 8
        choice: Literal["best", "majority", "weighted"] = "best"

    async def run(self, search: Search) -> None:
        await search.expand([search.tree.root], self.options.n, whole=True)

    def choose(self, search: Search) -> Node | None:
        finals = search.tree.finals()
        if self.options.choice == "best" or not finals:
            return super().choose(search)
        copies: dict[str, list[Node]] = defaultdict(list)
        for node in finals:
            copies[search.problem.key(search.tree.text(node))].append(node)
        weigh = (lambda node: squash(node.score or 0.0)) if self.options.choice == "weighted" else (lambda node: 1.0)
        winners = max(copies.values(), key=lambda nodes: sum(map(weigh, nodes)))
        return max(winners, key=lambda node: node.score or 0.0)
