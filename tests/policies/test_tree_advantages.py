"""Credit by step of a searched tree: what the formula promises, on trees of any shape, and on one that a strategy has searched."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safeladder.actors.trajectories import group_of_tree
from safeladder.policies.advantages import dr_grpo
from safeladder.policies.scores import Dense, Scores
from safeladder.policies.search.base import Judgement, Limits, Problem
from safeladder.policies.search.beam import Beam
from safeladder.policies.search.tree import Step
from safeladder.policies.tree_advantages import tree
from safeladder.protocol import messages as m

Path = list[tuple[int, int]]  # (step, its tokens) from the root on


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[Path], list[float], list[bool]]:
    """Leaves of a random tree with up to 3 levels, with rewards."""
    paths: list[Path] = []
    number = 0

    def grow(path: Path, level: int) -> None:
        nonlocal number
        children = draw(st.integers(0 if path else 1, 3)) if level < 3 else 0
        if not children:
            paths.append(path)
        for _ in range(children):
            number += 1
            grow([*path, (number, draw(st.integers(1, 3)))], level + 1)

    grow([], 0)
    rewards = draw(st.lists(st.integers(-4, 4).map(float), min_size=len(paths), max_size=len(paths)))
    valid = draw(st.lists(st.booleans(), min_size=len(paths), max_size=len(paths)))
    return paths, rewards, valid


def scores(paths: list[Path], rewards: list[float], valid: list[bool], masked: bool = False) -> Scores:
    nodes = [torch.tensor([node for node, size in path for _ in range(size)], dtype=torch.int32) for path in paths]
    kept = [
        torch.arange(len(column)) % 2 == 0 if masked else torch.ones(len(column), dtype=torch.bool) for column in nodes
    ]
    return Scores(torch.tensor(rewards, dtype=torch.float64), torch.tensor(valid), dense=Dense(kept=kept, nodes=nodes))


def by_answer(paths: list[Path], advantages: torch.Tensor) -> list[list[float]]:
    return [part.tolist() for part in torch.split(advantages, [sum(size for _, size in path) for path in paths])]


@given(trees(), st.integers(-3, 3), st.integers(1, 4))
def test_credit_is_of_the_step_alone_and_knows_neither_shift_nor_what_is_invalid(
    made: tuple[list[Path], list[float], list[bool]], shift: int, scale: int
) -> None:
    paths, rewards, valid = made
    [flat] = tree([scores(paths, rewards, valid)])
    found = by_answer(paths, flat)
    by_node: dict[int, float] = {}
    for path, row, ok in zip(paths, found, valid, strict=True):
        assert ok or not any(row)
        for node, advantage in zip([n for n, size in path for _ in range(size)], row, strict=True):
            if ok:
                assert by_node.setdefault(node, advantage) == advantage, (
                    "a step has one credit in every answer and token"
                )
    [moved] = tree([scores(paths, [r * scale + shift for r in rewards], valid)])
    assert torch.allclose(moved, flat * scale)
    [otherwise] = tree([scores(paths, [r if ok else 99.0 for r, ok in zip(rewards, valid, strict=True)], valid)])
    assert torch.equal(otherwise, flat)
    order = list(reversed(range(len(paths))))
    [turned] = tree([scores([paths[i] for i in order], [rewards[i] for i in order], [valid[i] for i in order])])
    assert by_answer([paths[i] for i in order], turned) == [pytest.approx(found[i]) for i in order]
    [masked] = tree([scores(paths, rewards, valid, masked=True)])
    assert all(value in (0.0, whole) for value, whole in zip(masked.tolist(), flat.tolist(), strict=True))


@given(trees())
def test_along_an_answer_what_the_steps_changed_sums_to_what_it_is_better_than_the_mean(
    made: tuple[list[Path], list[float], list[bool]],
) -> None:
    """With every path's own last step, sum over steps of V(s) - V(parent) = R - mean R, whatever the tree's shape."""
    paths, rewards, valid = made
    known = [reward for reward, ok in zip(rewards, valid, strict=True) if ok]
    if len(set(known)) < 2:
        assert not tree([scores(paths, rewards, valid)])[0].any(), "without spread there is nothing to learn"
        return
    mean = sum(known) / len(known)
    through = {
        n: sum(any(n == node for node, _ in p) for p, ok in zip(paths, valid, strict=True) if ok)
        for p in paths
        for n, _ in p
    }
    found = by_answer(paths, tree([scores(paths, rewards, valid)])[0])
    for path, row, ok, reward in zip(paths, found, valid, rewards, strict=True):
        if not ok:
            continue
        before, at = mean, 0
        for node, size in path:
            # A sqrt(n) = 2 V - root - parent gives V back
            value = (row[at] * math.sqrt(through[node]) + mean + before) / 2
            before, at = value, at + size
        assert before == pytest.approx(reward)


@given(st.lists(st.integers(-4, 4).map(float), min_size=2, max_size=6))
def test_answers_that_share_nothing_are_compared_as_a_group_is(rewards: list[float]) -> None:
    paths: list[Path] = [[(number, 2)] for number in range(1, len(rewards) + 1)]
    given_ = scores(paths, rewards, [True] * len(rewards))
    whole = dr_grpo([Scores(given_.rewards, given_.valid)])[0]
    assert torch.allclose(tree([given_])[0], 2 * whole.repeat_interleave(2))


def test_without_the_steps_of_the_tokens_nothing_is_guessed() -> None:
    two = torch.tensor([0.0, 1.0], dtype=torch.float64)
    with pytest.raises(ValueError, match="needs the dense column 'nodes'"):
        tree([Scores(two, torch.tensor([True, True]), dense=Dense(kept=[torch.ones(1, dtype=torch.bool)] * 2))])


class Letters:
    """Draws letters, with a log-probability and a version that tell which."""

    async def draw(self, requests: Any) -> list[list[Step]]:
        return [[self._step(request, index) for index in range(request.count)] for request in requests]

    def _step(self, request: Any, index: int) -> Step:
        token = 97 + (request.seed + index) % 5
        return Step(chr(token), (token,), (-token / 100,), len(request.text) == 2, (token,))

    async def judge(self, requests: list[Judgement]) -> list[dict[str, float]]:
        return [{"safety": 0.1 + 0.8 * (ord(request.last) - 97) / 5} for request in requests]


def test_a_searched_tree_becomes_a_group_with_every_token_as_it_was_sampled() -> None:
    ports = Letters()
    result = asyncio.run(Beam(Beam.Options(2, 2)).search(Problem("p", 3), ports, ports, limits=Limits(step_tokens=1)))
    ends = result.tree.finals()
    group = m.Group(m.Record("r", "normal", "p"), m.Sampling(samples=4))
    made = group_of_tree(group, [7, 8], result.tree, ends)
    arrays, sent = made.arrays, made.payload
    assert isinstance(sent, m.Group) and [completion.finish for completion in sent.completions] == ["stop"] * len(ends)
    texts = ["".join(map(chr, row)) for row in np.split(arrays["completion_ids"], np.cumsum(arrays["lengths"])[:-1])]
    assert texts == [completion.text for completion in sent.completions] == [result.tree.text(end) for end in ends]
    assert np.allclose(arrays["behaviour_logprobs"], -arrays["completion_ids"] / 100)
    assert np.array_equal(arrays["versions"], arrays["completion_ids"])
    assert arrays["own"].all() and arrays["prompt_ids"].tolist() == [7, 8]
    assert arrays["nodes"].tolist() == [node.number for end in ends for node in result.tree.path(end)]
