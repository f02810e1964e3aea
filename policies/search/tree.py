"""The tree that a search leaves behind: every step that was drawn, what each dimension said of it, and what became of it.

A tree is the record of a search (shown, logged, trained on), and the search's own working state. Nodes are numbered in the order in
which they were made; the root is number 0 and stands for the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Fate = Literal["open", "final", "vetoed", "unscored", "pruned"]
ROOT: Final = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One candidate for the next part of an answer.

    `logprobs`, `versions`: of each token, ln of the probability with which it was sampled and the weights that sampled it. `final`: the
    answer ends with it. A step of an environment or of a person was not sampled: `own` is False and both are empty.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    final: bool = False
    versions: tuple[int, ...] = ()
    own: bool = True

    @property
    def logprob(self) -> float:
        """The sum of ln p over its tokens; 0 where nothing was sampled."""
        return sum(self.logprobs)

    @property
    def version(self) -> int:
        """The oldest weight version of its tokens; 0 where nothing was sampled."""
        return min(self.versions, default=0)


@dataclass(slots=True, eq=False)
class Node:
    """A step in its place. `place` is the sample index at each level from the root, which names the node whatever the order.

    `scores`: dimension -> estimate in [0, 1] of this prefix, this step included; empty where nothing was judged. `score`: all of it in
    one number (see `scoring.Combination`), None until judged. `fate`: "open" may be continued; "final" is a
    complete answer; "vetoed" and "unscored" (a verifier failed) may never be chosen; "pruned" lost against others.
    """

    number: int
    parent: int | None
    place: tuple[int, ...]
    step: Step
    scores: dict[str, float] = field(default_factory=dict)
    score: float | None = None
    fate: Fate = "open"
    reason: str = ""

    @property
    def eligible(self) -> bool:
        """Whether it may be part of an answer."""
        return self.fate not in ("vetoed", "unscored") and self.score is not None

    def record(self) -> dict[str, Any]:
        """The node as plain data."""
        return {
            "node": self.number,
            "parent": self.parent,
            "text": self.step.text,
            "tokens": len(self.step.token_ids),
            "own": self.step.own,
            "logprob": round(self.step.logprob, 4),
            "version": self.step.version,
            "scores": {name: round(value, 4) for name, value in self.scores.items()},
            "score": None if self.score is None else round(self.score, 4),
            "fate": self.fate,
            "reason": self.reason,
        }


class Tree:
    """All nodes of one search."""

    def __init__(self) -> None:
        self.nodes: list[Node] = [Node(ROOT, None, (), Step(""), score=0.0)]
        self._children: dict[int, int] = {}

    @property
    def root(self) -> Node:
        return self.nodes[ROOT]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes[1:])

    def children_of(self, node: Node) -> int:
        """How many children `node` has: the next one's sample index."""
        return self._children.get(node.number, 0)

    def add(self, parent: Node, step: Step) -> Node:
        """Appends `step` as the next child of `parent`."""
        index = self.children_of(parent)
        self._children[parent.number] = index + 1
        node = Node(len(self.nodes), parent.number, (*parent.place, index), step)
        self.nodes.append(node)
        return node

    def path(self, node: Node) -> list[Node]:
        """From the first step to `node`; empty for the root."""
        path = []
        current: Node | None = node
        while current is not None and current.parent is not None:
            path.append(current)
            current = self.nodes[current.parent]
        return path[::-1]

    def text(self, node: Node) -> str:
        return "".join(each.step.text for each in self.path(node))

    def token_ids(self, node: Node) -> list[int]:
        return [token for each in self.path(node) for token in each.step.token_ids]

    def finals(self) -> list[Node]:
        """Complete answers that may be chosen, in the order in which they were made."""
        return [node for node in self if node.fate == "final" and node.eligible]

    def record(self) -> list[dict[str, Any]]:
        """The tree as plain data, one map a node, for logs, messages and the console."""
        return [node.record() for node in self]
