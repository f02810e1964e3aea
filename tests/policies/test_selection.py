import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeladder.policies.selection import LengthBias, length_bias

LENGTHS = st.lists(st.integers(0, 5000), min_size=1, max_size=60)


@given(LENGTHS, LENGTHS)
def test_the_bias_is_never_negative_and_sees_no_order(trained, drawn):
    bias = length_bias(trained, drawn)
    assert bias >= 0
    assert length_bias(trained[::-1], sorted(drawn)) == pytest.approx(bias)


@given(LENGTHS)
def test_what_is_trained_as_drawn_has_no_bias(lengths):
    assert length_bias(lengths, lengths) == pytest.approx(0.0, abs=1e-12)
    assert length_bias([], lengths) == length_bias(lengths, []) == 0.0


def test_a_fair_choice_is_below_a_hundredth_and_leaving_out_the_long_is_not():
    draw = random.Random(0)
    drawn = [int(draw.lognormvariate(4, 0.8)) for _ in range(1024)]
    bias = LengthBias()
    bias.drawn(drawn)
    bias.trained(draw.sample(drawn, 512))
    assert bias.value() < 0.01
    bias = LengthBias()
    bias.drawn(drawn)
    bias.trained([length for length in drawn if length < 80])
    assert bias.value() > 0.1


def test_only_the_last_completions_count():
    bias = LengthBias(window=4)
    bias.drawn([1000] * 4 + [8] * 4)
    bias.trained([8] * 4)
    assert bias.value() == pytest.approx(0.0)
