"""Groups in the making: what a generator that is told to stop hands back, and how another goes on from it.

A partly generated group has its completions so far with the arrays of a generated one. Those with finish "abort" are to be
continued; the others are complete and stay as they are. Every token keeps the log-probability and the version under which it was
sampled, and draws depend on seed, sample and position alone: under the same weights the continued group has the
same tokens as an uninterrupted one, and under newer ones the same prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from safeladder.actors.actor import Output
from safeladder.policies.engines.base import GeneratedSequence
from safeladder.protocol import messages as m
from safeladder.protocol.codec import Arrays

PER_TOKEN = {"completion_ids": np.int32, "behaviour_logprobs": np.float32, "versions": np.int32}


class Misfit(Exception):
    """What was made of a group cannot be continued here; says why. The group is sampled anew."""


def output(
    group: m.Group,
    prompt_ids: Sequence[int],
    sequences: Sequence[GeneratedSequence],
    decode: Callable[[list[int]], str],
) -> Output:
    """The group with its completions and the arrays that `messages.Group` lists, complete or not."""
    columns: dict[str, list[list[Any]]] = {
        "completion_ids": [sequence.token_ids for sequence in sequences],
        "behaviour_logprobs": [sequence.logprobs for sequence in sequences],
        "versions": [sequence.versions for sequence in sequences],
    }
    arrays: Arrays = {
        "prompt_ids": np.array(prompt_ids, np.int32),
        "lengths": np.array([len(sequence.token_ids) for sequence in sequences], np.int32),
        **{name: np.array([x for row in rows for x in row], PER_TOKEN[name]) for name, rows in columns.items()},
    }
    completions = [m.Completion(decode(sequence.token_ids), sequence.finish) for sequence in sequences]
    return Output(msgspec.structs.replace(group, completions=completions), arrays)


def unfinished(group: m.Group) -> bool:
    """Whether a generator has handed this group back in the middle."""
    return any(completion.finish == "abort" for completion in group.completions)


def sequences_of(group: m.Group, arrays: Arrays, prompt_ids: Sequence[int]) -> list[GeneratedSequence]:
    """What has been made of an unfinished group, one sequence a sample. Raises Misfit where it cannot be continued."""
    if missing := {"prompt_ids", "lengths", *PER_TOKEN} - set(arrays):
        raise Misfit(f"it came without {sorted(missing)}")
    lengths = arrays["lengths"].tolist()
    if not len(lengths) == len(group.completions) == group.sampling.samples:
        raise Misfit(f"{group.sampling.samples} samples, {len(group.completions)} completions, {len(lengths)} lengths")
    if any(len(arrays[name]) != sum(lengths) for name in PER_TOKEN):
        raise Misfit(f"its arrays do not hold the {sum(lengths)} tokens that its lengths name")
    if max(lengths) > group.sampling.max_new_tokens:
        raise Misfit(f"{max(lengths)} tokens, of {group.sampling.max_new_tokens} at most")
    if arrays["prompt_ids"].tolist() != list(prompt_ids):
        raise Misfit("its prompt has other tokens here")
    if (oldest := int(arrays["versions"].min(initial=2**31 - 1))) < group.min_version:
        raise Misfit(f"a token of version {oldest}, where {group.min_version} is the oldest that may be")
    finishes = [completion.finish for completion in group.completions]
    sequences = []
    for finish, end, length in zip(finishes, np.cumsum(lengths).tolist(), lengths, strict=True):
        if finish == "error":
            raise Misfit("one of its samples has failed")
        ids, logprobs, versions = (arrays[name][end - length : end].tolist() for name in PER_TOKEN)
        sequences.append(GeneratedSequence(ids, logprobs, versions, finish))
    return sequences


def tokens(sequences: Sequence[GeneratedSequence]) -> int:
    return sum(len(sequence.token_ids) for sequence in sequences)


def version_range(sequences: Sequence[GeneratedSequence]) -> list[int]:
    """The oldest and the newest version of any token; empty where there is none."""
    versions = [version for sequence in sequences for version in sequence.versions]
    return [min(versions), max(versions)] if versions else []
