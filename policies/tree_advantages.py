"""Credit for the steps of a searched tree, from the rewards of its complete answers (TreeRL, arXiv 2506.11902, section 3.3).

    V(s)   = mean reward of the complete answers that pass through step s; V(root) that of all
    A(s)   = (V(s) - V(root) + V(s) - V(parent of s)) / sqrt(answers that pass through s)

The first difference says how good it is to be here, the second what this step changed. The root of the count weighs down what stands in
many answers, because its tokens are trained once in each of them. Answers that share nothing get 2 (R - mean R).

The answers of a tree are no sample of the policy: the search chose what to continue. The importance weights of `corrections.py` answer
for the age of the tokens and for the engine, and not for that choice.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from safeladder.policies.scores import Scores, has_spread
from safeladder.policies.token_advantages import per_token


@per_token
def tree(batch: Sequence[Scores]) -> list[Tensor]:
    """[sum n_k] a group, from the column `dense.nodes`: the number of the step that each token belongs to, in its group.

    A token of no step (the environment's), or of an invalid completion, gets 0; so do all of a group whose valid rewards are all equal.
    Raises ValueError where the column is missing.
    """
    return [_of_group(scores) for scores in batch]


def _of_group(scores: Scores) -> Tensor:
    if scores.dense is None or scores.dense.nodes is None:
        raise ValueError(
            "the advantage 'tree' needs the dense column 'nodes', which a searcher with `training: tree` makes"
        )
    columns = [column.tolist() for column in scores.dense.nodes]
    kept = [column.tolist() for column in scores.kept()]
    valid, rewards = scores.valid.tolist(), scores.rewards.tolist()
    if not any(valid) or not has_spread(scores.valid_rewards()):
        return torch.zeros(sum(map(len, columns)), dtype=scores.rewards.dtype)
    through: dict[int, list[float]] = defaultdict(list)
    for column, ok, reward in zip(columns, valid, rewards, strict=True):
        for node in dict.fromkeys(column) if ok else ():
            through[node].append(reward)
    value = {node: math.fsum(found) / len(found) for node, found in through.items()}
    known = [reward for reward, ok in zip(rewards, valid, strict=True) if ok]
    root = math.fsum(known) / len(known)
    advantages: list[float] = []
    for column, own, ok in zip(columns, kept, valid, strict=True):
        credit, parent = {}, root
        for node in dict.fromkeys(column) if ok else ():
            credit[node] = (2 * value[node] - root - parent) / math.sqrt(len(through[node]))
            parent = value[node]
        advantages += [credit[node] if ok and mine else 0.0 for node, mine in zip(column, own, strict=True)]
    return torch.tensor(advantages, dtype=scores.rewards.dtype)
