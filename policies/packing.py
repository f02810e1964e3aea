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
    completions that follow each other in a pack with it. Next fit: indices are contiguous in a pack, so completions of one
    group stay together; a group that does not fit whole is continued in the next pack, with its prompt again. A sequence
    longer than the budget gets a pack of its own. Raises ValueError for a budget below 1 or a negative length.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget is {token_budget}; a pack must hold at least one token")
    packs: list[list[int]] = []
    room = 0
    for index, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        if length < 0:
            raise ValueError(f"sequence {index} has {length} tokens; a length cannot be negative")
        shared = bool(packs) and list(prompts[packs[-1][-1]]) == list(prompt)
        cost = length if shared else len(prompt) + length
        if packs and cost <= room:
            packs[-1].append(index)
            room -= cost
        else:
            packs.append([index])
            room = token_budget - len(prompt) - length
    return packs
