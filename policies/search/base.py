"""What a search strategy is, and the search in which it works.

A strategy of one's own is one class in one file:

    class TwoLevels(Strategy):
        async def run(self, search: Search) -> None:
            for node in await search.expand([search.tree.root], count=8):
                ...

named in `registry.STRATEGIES` or as `module:Class`. It decides which nodes are continued; `Search` draws, judges, counts, vetoes and
keeps the tree, so a strategy cannot spend what is not there or choose what was vetoed.

The two ports are whatever can draw steps and judge them: the actor's pools behind calls (`actors/searcher.py`), or plain functions in
a benchmark. Ports may answer in any batches they like, and `batching.py` gathers the requests of many searches into one: a draw's
randomness depends on the search's seed and the node's place in the tree alone, so a search gives the same answer beside others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, ClassVar, Protocol

from safeladder.policies.search.budget import Budget, Spent
from safeladder.policies.search.scoring import Combination
from safeladder.policies.search.tree import Node, Step, Tree


@dataclass(frozen=True, slots=True)
class Draw:
    """A request for `count` continuations of an answer of which `text` (and, where steps carry tokens, `token_ids`) stands.

    `whole`: to the end of the answer rather than of the step. `seed` and a continuation's index decide what is drawn.
    `max_new_tokens`: of each.
    """

    prompt: Any
    text: str
    token_ids: tuple[int, ...]
    count: int
    seed: int
    max_new_tokens: int
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Judgement:
    """A request to judge an answer up to here. `step`: number of its last step, from 0. `final`: it is complete."""

    prompt: Any
    text: str
    last: str
    step: int
    final: bool


Watch = Callable[[Node], None]


class Sampler(Protocol):
    """Draws steps: `count` for each request, in order, or an exception for the whole call."""

    async def draw(self, requests: Sequence[Draw]) -> list[list[Step]]: ...


class Judge(Protocol):
    """Judges prefixes: dimension -> [0, 1], or None where a verifier failed or abstained: a failure is never a score."""

    async def judge(self, requests: Sequence[Judgement]) -> list[Mapping[str, float] | None]: ...


@dataclass(frozen=True)
class Problem:
    """`prompt`: what the ports understand. `answer_key`: which answers count as the same (majority); None: equal text.

    `encode`: token ids of text that a strategy puts into an answer; None where steps carry none.
    """

    prompt: Any
    seed: int = 0
    answer_key: Callable[[str], str] | None = None
    encode: Callable[[str], Sequence[int]] | None = None

    def key(self, answer: str) -> str:
        return self.answer_key(answer) if self.answer_key else answer.strip()


@dataclass
class Limits:
    """`step_tokens`: of one step. `answer_tokens`, `max_steps`: of an answer, which is complete when it reaches one of them.

    `good_enough`: the score of a complete answer that ends the search.
    """

    step_tokens: int = 64
    answer_tokens: int = 512
    max_steps: int = 16
    good_enough: float | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """Something that a strategy did and a person would want to know: what (`kind`), at which step from 0, and why."""

    kind: str
    step: int
    reason: str


@dataclass
class Result:
    """`chosen` is None when no complete answer may be given; `ended` says why the search ended.

    `answers`: what is said of a complete answer, by node, where that is not all of its text. `confidence` in [0, 1] and `sources`: of a
    strategy that states them.
    """

    tree: Tree
    chosen: Node | None
    spent: Spent
    ended: str
    notes: list[Note] = field(default_factory=list)
    answers: dict[int, str] = field(default_factory=dict)
    confidence: float | None = None
    sources: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str | None:
        return None if self.chosen is None else self.said(self.chosen)

    def said(self, node: Node) -> str:
        """The answer that ends with `node`."""
        return self.answers.get(node.number) or self.tree.text(node)


class Search:
    """One search: ports, budget, tree. Made by `Strategy.search`."""

    def __init__(
        self,
        problem: Problem,
        sampler: Sampler,
        judge: Judge,
        combination: Combination,
        budget: Budget,
        limits: Limits,
        watch: Watch | None = None,
    ) -> None:
        self.problem, self.combination, self.limits = problem, combination, limits
        self._watch = watch
        self.tree = Tree()
        self.spent = Spent(budget)
        self.notes: list[Note] = []
        self._sampler, self._judge = sampler, judge

    @property
    def stopped(self) -> str | None:
        """Why the search has to end now, or None: asked before each round."""
        if over := self.spent.over():
            return f"budget of {over} spent"
        good = self.limits.good_enough
        if good is not None and any(node.score is not None and node.score >= good for node in self.tree.finals()):
            return "good enough"
        return None

    async def expand(self, nodes: Sequence[Node], count: int, whole: bool = False) -> list[list[Node]]:
        """`count` judged children of each of `nodes`, all drawn in one call and judged in one; empty lists when the
        budget has no token left. A child is final when its answer ended, or when it may not grow any deeper."""
        drawn = await self.draw(nodes, count, whole)
        await self.judge([child for children in drawn for child in children])
        return drawn

    async def draw(self, nodes: Sequence[Node], count: int, whole: bool = False) -> list[list[Node]]:
        """`count` children of each of `nodes`, not judged yet; none of one whose answer has no room left, after an insertion."""
        wanted = self.limits.answer_tokens if whole else self.limits.step_tokens
        allowance = self.spent.allowance(len(nodes) * count, wanted)
        if not nodes or count < 1 or allowance < 1 or self.spent.over():
            return [[] for _ in nodes]
        able = [node for node in nodes if self._room(node) > 0]
        if not able:
            return [[] for _ in nodes]
        requests = [self._request(node, count, min(allowance, self._room(node)), whole) for node in able]
        answers = await self._sampler.draw(requests)
        self.spent.calls += 1
        children: dict[int, list[Node]] = {}
        for node, steps in zip(able, answers, strict=True):
            children[node.number] = [self._add(node, step, whole) for step in steps]
            self.spent.tokens += sum(len(step.token_ids) for step in steps)
        return [children.get(node.number, []) for node in nodes]

    async def judge(self, nodes: Sequence[Node]) -> None:
        """Scores nodes; what a verifier could not judge is out, and so is what the veto forbids."""
        if not nodes:
            return
        requests = [
            Judgement(
                self.problem.prompt, self.tree.text(node), node.step.text, len(node.place) - 1, node.fate == "final"
            )
            for node in nodes
        ]
        answers = await self._judge.judge(requests)
        self.spent.calls += 1
        for node, scores in zip(nodes, answers, strict=True):
            self._score(node, scores)
            self._show(node)

    def insert(self, parent: Node, text: str, final: bool = False) -> Node:
        """Puts text that the policy did not write under `parent`. It is not judged: it has its parent's scores."""
        tokens = tuple(self.problem.encode(text)) if self.problem.encode else ()
        node = self.tree.add(parent, Step(text, tokens, final=final, own=False))
        node.scores, node.score = dict(parent.scores), parent.score
        node.fate = "final" if final else "open"
        self._show(node)
        return node

    def better(self, nodes: Sequence[Node], count: int) -> list[Node]:
        """The best `count` eligible nodes, best first, the earlier of equals first; the others are marked as pruned."""
        ranked = sorted((node for node in nodes if node.eligible), key=lambda node: -_value(node))
        for node in ranked[count:]:
            if node.fate == "open":
                node.fate, node.reason = "pruned", f"not among the best {count}"
        return ranked[:count]

    def seed(self, node: Node, index: int) -> int:
        """The seed of `node`'s children from number `index` on: of the search's seed and of places, nothing else."""
        place = ",".join(map(str, (self.problem.seed, *node.place, index)))
        return int.from_bytes(blake2b(place.encode(), digest_size=6, key=b"safeladder.search.1").digest(), "little")

    def _show(self, node: Node) -> None:
        if self._watch is not None:
            self._watch(node)

    def _request(self, node: Node, count: int, tokens: int, whole: bool) -> Draw:
        return Draw(
            self.problem.prompt,
            self.tree.text(node),
            tuple(self.tree.token_ids(node)),
            count,
            self.seed(node, self.tree.children_of(node)),
            tokens,
            whole,
        )

    def _add(self, parent: Node, step: Step, whole: bool) -> Node:
        node = self.tree.add(parent, step)
        if step.final or whole or len(node.place) >= self.limits.max_steps or self._room(node) < 1:
            node.fate = "final"
        return node

    def _room(self, node: Node) -> int:
        """Tokens that an answer may still have after `node`."""
        return self.limits.answer_tokens - sum(len(each.step.token_ids) for each in self.tree.path(node))

    def _score(self, node: Node, scores: Mapping[str, float] | None) -> None:
        if scores is None or not self.combination.weights.keys() <= scores.keys():
            node.fate, node.reason = "unscored", "a verifier gave no score"
            return
        node.scores = dict(scores)
        values = self.combination.along([each.scores for each in self.tree.path(node)])
        node.score = self.combination.score(values, node.step)
        if self.combination.vetoes(values):
            node.fate, node.reason = "vetoed", f"safety {values['safety']:.2f} below {self.combination.veto:.2f}"


class Strategy(ABC):
    """Decides which nodes are continued. Subclasses write `run`, and `choose` where the best score does not decide."""

    name: ClassVar[str]

    @dataclass(frozen=True)
    class Options:
        """No options."""

    def __init__(self, options: Any = None) -> None:
        self.options: Any = self.Options() if options is None else options

    async def search(
        self,
        problem: Problem,
        sampler: Sampler,
        judge: Judge,
        *,
        combination: Combination | None = None,
        budget: Budget | None = None,
        limits: Limits | None = None,
        watch: Watch | None = None,
    ) -> Result:
        """Searches and returns the tree with what was chosen. `watch` sees each node once it is judged. What a port
        raises is raised here."""
        search = Search(
            problem, sampler, judge, combination or Combination(), budget or Budget(), limits or Limits(), watch
        )
        await self.run(search)
        chosen = self.choose(search)
        ended = search.stopped or ("complete" if chosen else "nothing may be chosen")
        return Result(search.tree, chosen, search.spent, ended, search.notes)

    @abstractmethod
    async def run(self, search: Search) -> None:
        """Grows the tree until it is done or `search.stopped`."""

    def choose(self, search: Search) -> Node | None:
        """The complete answer to give: of all that may be chosen, the best."""
        return max(search.tree.finals(), key=_value, default=None)


def _value(node: Node) -> float:
    return float("-inf") if node.score is None else node.score
