"""The prefix cache gives back what was put in, for the longest beginning that it has, and keeps its bound."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from safeladder.policies.engines.decoder import tokens
from safeladder.policies.engines.prefixes import Prefixes, agreeing

sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=12)


def states(ids: list[int], start: int = 0) -> list[torch.Tensor]:
    """What stands for keys and values: a number for each token that depends on all before it."""
    numbers = [float(hash(tuple(ids[: at + 1])) % 9973) for at in range(len(ids))]
    return [torch.tensor(numbers).view(1, -1, 1)[:, start:]]


@given(sequences, st.lists(st.integers(0, 2), max_size=10))
def test_the_longest_known_beginning_is_found_with_its_own_states(stored, asked):
    prefixes = Prefixes(1000)
    for ids in stored:
        prefixes.insert(ids, lambda start, ids=ids: states(ids, start))
    longest = max(agreeing(ids, asked) for ids in stored)
    found = prefixes.find(asked, len(asked))
    assert tokens(found) == longest == prefixes.matched(asked)
    if longest:
        assert torch.equal(found[0], states(asked[:longest])[0])
    assert prefixes.tokens == len({tuple(ids[: at + 1]) for ids in stored for at in range(len(ids))}), "stored once"


@given(sequences, st.integers(0, 12))
def test_the_bound_is_kept_and_what_was_stored_last_stays(stored, capacity):
    prefixes = Prefixes(capacity)
    for ids in stored:
        prefixes.insert(ids, lambda start, ids=ids: states(ids, start))
        assert prefixes.tokens <= capacity
        assert prefixes.matched(ids) >= min(len(ids), capacity)
    prefixes.clear()
    assert prefixes.tokens == prefixes.matched(stored[0]) == 0
