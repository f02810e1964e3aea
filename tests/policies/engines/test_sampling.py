"""Drawing a token: the distribution that is drawn from, its log-probability, and random numbers that are keyed."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safeladder.policies.engines.base import EngineError
from safeladder.policies.engines.sampling import BLOCK, draw, truncate, uniform
from safeladder.protocol.messages import Sampling

logit_rows = st.lists(st.floats(-20, 20), min_size=1, max_size=12)
knobs = st.builds(
    Sampling,
    temperature=st.floats(0.1, 3),
    top_k=st.integers(0, 14),
    top_p=st.floats(0.05, 1),
    min_p=st.floats(0, 0.9),
)


@settings(deadline=None)
@given(logit_rows, knobs, st.integers(0, 2**48 - 1))
def test_the_logprob_is_that_of_the_truncated_distribution_and_only_kept_tokens_are_drawn(row, sampling, bits):
    logits = torch.tensor([row])
    kept = truncate(
        (logits.double() / sampling.temperature).softmax(-1), sampling.top_k, sampling.top_p, sampling.min_p
    )
    expected = (kept / kept.sum()).log()[0]
    assert bool(kept.max() == (logits.double() / sampling.temperature).softmax(-1).max()), "the most likely token stays"
    (token,), (logprob,) = draw(logits, sampling, [bits / 2**48])
    assert math.isfinite(logprob)
    assert logprob == pytest.approx(float(expected[token]), abs=1e-9)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 2}, [0.4, 0.3, 0, 0]),
        ({"top_p": 0.7}, [0.4, 0.3, 0, 0]),
        ({"top_p": 0.71}, [0.4, 0.3, 0.2, 0]),
        ({"top_p": 0.01}, [0.4, 0, 0, 0]),
        ({"min_p": 0.5}, [0.4, 0.3, 0.2, 0]),
        ({"top_k": 3, "top_p": 0.5}, [0.4, 0.3, 0, 0]),
    ],
)
def test_truncation_keeps_what_its_definition_says(options, kept):
    masses = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)
    assert truncate(masses, **options)[0].tolist() == kept


def test_samples_follow_the_distribution():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    draws = 20_000
    uniforms = [uniform(7, sample, 0) for sample in range(draws)]
    tokens, _ = draw(logits.expand(draws, -1), Sampling(), uniforms)
    counts = Counter(tokens)
    for token, probability in enumerate(logits.softmax(-1)[0].tolist()):
        spread = 5 * math.sqrt(draws * probability * (1 - probability))
        assert abs(counts[token] - draws * probability) < spread


def test_temperature_zero_takes_the_first_of_the_most_likely():
    assert draw(torch.tensor([[1.0, 3.0, 3.0]]), Sampling(temperature=0.0), [0.9]) == ([1], [0.0])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_without_a_distribution_are_an_error_and_never_a_token(temperature, bad):
    with pytest.raises(EngineError, match="not finite"):
        draw(torch.tensor([[0.0, bad]]), Sampling(temperature=temperature), [0.5])


@given(st.integers(-(2**63), 2**64), st.integers(0, 1023), st.integers(0, 2**20))
def test_uniforms_are_in_range_and_differ_by_each_coordinate(seed, sample, position):
    value = uniform(seed, sample, position)
    assert 0 <= value < 1
    assert value == uniform(seed, sample, position)
    assert len({value, uniform(seed + 1, sample, position), uniform(seed, sample + 1, position)}) == 3
    assert value != uniform(seed, sample, position + 1)


def test_the_uniforms_of_this_release_stay_as_they_are():
    assert uniform(7, 0, 0) == 0.5507026698775839


@given(st.integers(1, 5 * BLOCK), st.integers(0, 2**32), st.integers(0, 2**48 - 1))
def test_sums_by_blocks_draw_what_a_running_sum_draws(size, seed, bits):
    """Truncation to every token goes the other way, by a running sum over all of them."""
    logits = torch.randn((2, size), generator=torch.Generator().manual_seed(seed)) * 4
    logits[0, size // 2 :] = -math.inf if size > 1 else 0.0
    number = bits / 2**48
    tokens, logprobs = draw(logits, Sampling(), [number, number])
    again, same = draw(logits, Sampling(min_p=1e-300), [number, number])
    for row, (token, other) in enumerate(zip(tokens, again, strict=True)):
        assert math.isfinite(logprobs[row])
        # Only where the number falls on an edge, within rounding, may the two ways part.
        cumulative = (logits[row].double().softmax(-1)).cumsum(-1)
        edge = float((cumulative - number).abs().min())
        assert token == other or edge < 1e-12
        if token == other:
            assert logprobs[row] == pytest.approx(same[row], abs=1e-9)
