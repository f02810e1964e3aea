import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeladder.policies.selection import LengthSelection, length_bin, selection_bias

LENGTHS = st.lists(st.integers(0, 10**6), min_size=1, max_size=60)


def test_bins_are_two_an_octave_and_empty_is_one_of_its_own():
    assert [length_bin(n) for n in (0, 1, 2, 3, 4, 5, 6, 8, 1024)] == [0, 1, 3, 4, 5, 5, 6, 7, 21]


@given(LENGTHS, st.randoms())
def test_the_same_lengths_have_no_bias_whatever_their_order(lengths, chance):
    shuffled = chance.sample(lengths, len(lengths))
    assert selection_bias(lengths, shuffled) == pytest.approx(0.0, abs=1e-12)


@given(LENGTHS, LENGTHS)
def test_the_bias_is_finite_and_not_negative(trained, drawn):
    found = selection_bias(trained, drawn)
    assert found is not None and 0.0 <= found < math.inf


def test_a_hand_checked_case():
    # bins 1 and 5: trained 3 + 0, drawn 1 + 1; with half a count each: 3.5/4, 0.5/4 against 1.5/3, 1.5/3
    expected = 0.875 * math.log(0.875 / 0.5) + 0.125 * math.log(0.125 / 0.5)
    assert selection_bias([1, 1, 1], [1, 4]) == pytest.approx(expected)


@given(st.lists(st.integers(1, 500), min_size=8, max_size=60))
def test_leaving_out_the_long_half_is_more_biased_than_leaving_out_every_other(lengths):
    lengths = sorted([*lengths, 1000, 2000, 4000, 8000] * 4)
    short, alternating = lengths[: len(lengths) // 2], lengths[::2]
    assert selection_bias(short, lengths) > selection_bias(alternating, lengths)


def test_nothing_drawn_or_nothing_trained_says_nothing():
    assert selection_bias([], [1]) is None and selection_bias([1], []) is None
    assert LengthSelection().bias is None


@given(LENGTHS, LENGTHS, st.integers(1, 30))
def test_the_running_figure_is_that_of_the_latest(drawn, trained, window):
    selection = LengthSelection(window)
    for length in drawn:
        selection.draw([length])
    selection.train(trained)
    assert selection.bias == pytest.approx(selection_bias(trained[-window:], drawn[-window:]), abs=1e-12)
