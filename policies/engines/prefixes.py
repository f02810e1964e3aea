"""The prefix cache: keys and values of token sequences that the present weights have computed, for requests to begin with.

A radix tree. Every node holds the states of a run of tokens that follows its parent's; sequences that begin alike
share the nodes of what they have in common, so the samples of a prompt and the steps of a search tree store it once.
When room is needed, the leaf that was not used for longest goes first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from safeladder.policies.engines.decoder import States, joined, split


@dataclass(slots=True, eq=False)
class _Node:
    ids: list[int]
    states: States
    parent: _Node | None
    used: int = 0
    children: dict[int, _Node] = field(default_factory=dict)  # by the first token


class Prefixes:
    """`tokens` counts what is stored. Not more than `capacity` (settable) is kept after `insert` and `shrink`."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.tokens = 0
        self._root = _Node([], [], None)
        self._clock = itertools.count(1)

    def clear(self) -> None:
        self._root, self.tokens = _Node([], [], None), 0

    def find(self, ids: Sequence[int], most: int) -> States:
        """The states of the longest stored beginning of `ids`, of at most `most` tokens; [] for none."""
        path = self._path(ids[:most])
        for node, _ in path:
            node.used = next(self._clock)
        return joined([[tensor[..., :length, :] for tensor in node.states] for node, length in path])

    def matched(self, ids: Sequence[int]) -> int:
        """How many tokens of `ids` are stored."""
        return sum(length for _, length in self._path(ids))

    def insert(self, ids: Sequence[int], states_from: Callable[[int], States]) -> None:
        """Stores `ids`, or as much of their beginning as has room. `states_from(start)` gives the states from that token
        on, and is asked for what is not stored yet."""
        path = self._path(ids)
        known = sum(length for _, length in path)
        new = min(len(ids), self.capacity) - known
        for node, _ in path:
            node.used = next(self._clock)
        if new <= 0:
            return
        parent = self._root
        if path:
            parent, length = path[-1]
            if length < len(parent.ids):
                parent = self._divided(parent, length)
        states = states_from(known)
        leaf = _Node(list(ids[known : known + new]), split(states, 0, new), parent, next(self._clock))
        parent.children[leaf.ids[0]] = leaf
        self.tokens += new
        self.shrink()

    def shrink(self) -> None:
        """Removes the least recently used leaves until `capacity` is kept."""
        while self.tokens > self.capacity:
            leaf = min(self._leaves(), key=lambda node: node.used)
            assert leaf.parent is not None
            del leaf.parent.children[leaf.ids[0]]
            self.tokens -= len(leaf.ids)

    def _path(self, ids: Sequence[int]) -> list[tuple[_Node, int]]:
        """The nodes that `ids` lead along, each with how many of its tokens agree; only the last one's may be a part."""
        path: list[tuple[_Node, int]] = []
        node, at = self._root, 0
        while at < len(ids) and (child := node.children.get(ids[at])) is not None:
            length = agreeing(child.ids, ids[at:])
            path.append((child, length))
            if length < len(child.ids):
                break
            node, at = child, at + length
        return path

    def _divided(self, node: _Node, length: int) -> _Node:
        """Cuts `node` in two; returns the first half, with `length` tokens."""
        assert node.parent is not None
        head = _Node(node.ids[:length], split(node.states, 0, length), node.parent, node.used)
        node.parent.children[head.ids[0]] = head
        node.ids, node.states, node.parent = node.ids[length:], split(node.states, length), head
        head.children[node.ids[0]] = node
        return head

    def _leaves(self) -> list[_Node]:
        leaves, stack = [], [*self._root.children.values()]
        while stack:
            node = stack.pop()
            stack += node.children.values()
            if not node.children:
                leaves.append(node)
        return leaves


def agreeing(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    return next(
        (at for at, (one, other) in enumerate(zip(left, right, strict=False)) if one != other),
        min(len(left), len(right)),
    )
