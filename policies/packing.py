"""Which sequences share a forward pass.

Sequences are laid one after the other in a single row, so no position is spent on padding. Completions of one prompt that
follow each other share it: the prompt stands in the row once and every completion branches off its end. `scoring.completion_logprobs`
turns a pack into a forward; this module only decides who travels together.
"""

from __future__ import annotations

from collections.abc import Sequence


def pack_branches(prompts: Sequence[Sequence[int]], lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Groups sequences that may share their prompt into packs of at most `token_budget` tokens, in the order given.

    `prompts` [N] are token ids; `lengths` [N] the tokens that each completion adds, each >= 0. A prompt counts once for all
    completions that follow each other in a pack with it. Next fit by groups: a group that fits into a pack of its own is never
    cut, so its prompt is computed once; one that does not is continued in the next pack, with its prompt again. A sequence
    longer than the budget gets a pack of its own. Raises ValueError for a budget below 1 or a negative length.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget is {token_budget}; a pack must hold at least one token")
    packs: list[list[int]] = []
    room = 0
    for group in _groups(prompts):
        stem = len(prompts[group[0]])
        whole = stem + sum(lengths[index] for index in group)
        begins = True
        for index in group:
            if lengths[index] < 0:
                raise ValueError(f"sequence {index} has {lengths[index]} tokens; a length cannot be negative")
            cost = lengths[index] + (stem if begins else 0)
            spare = whole if begins and whole <= token_budget else cost  # what must fit, so that no cut is needed
            if packs and spare <= room:
                packs[-1].append(index)
                room -= cost
            else:
                packs.append([index])
                room = token_budget - stem - lengths[index]
            begins = False
    return packs


def _groups(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices of sequences that follow each other with the same prompt."""
    groups: list[list[int]] = []
    for index, prompt in enumerate(prompts):
        if groups and list(prompts[index - 1]) == list(prompt):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
