"""The estimate of mutual information, and the peaks of a thought."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safeladder.policies.mi_peaks import hsic, peaks, tokens_at_peaks, trajectory


def drawn(*shape: int, seed: int = 0, scale: float = 20.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_independent_samples_have_little_and_identical_ones_much() -> None:
    x, y = drawn(400), drawn(400, seed=1)
    assert hsic(x, y) < 0.03 * hsic(x, x)
    assert hsic(x, x) > 1.0


def test_dependence_that_no_correlation_shows_is_seen() -> None:
    x = drawn(400)
    squares = x.square() / x.abs().mean()
    assert abs(float(torch.corrcoef(torch.stack([x, squares]))[0, 1])) < 0.15
    assert hsic(x, squares) > 10 * hsic(x, drawn(400, seed=1))


def test_it_is_the_trace_of_the_published_formula_with_one_sided_centring() -> None:
    x, y, m = drawn(30, 3), drawn(30, 2, seed=1), 30
    centring = torch.eye(m, dtype=torch.float64) - 1 / m

    def published(points: torch.Tensor) -> torch.Tensor:
        kernel = torch.exp(-torch.cdist(points, points).square() / (2 * 50.0**2 * points.shape[1])) @ centring
        return kernel @ torch.inverse(kernel + 1e-5 * m * torch.eye(m, dtype=torch.float64))

    assert hsic(x, y) == pytest.approx(float((published(x) * published(y).T).sum()), rel=1e-6)


@given(seed=st.integers(0, 1000), order=st.permutations(range(24)))
def test_neither_the_order_of_the_samples_nor_that_of_the_arguments_matters(seed: int, order: list[int]) -> None:
    x, y = drawn(24, 2, seed=seed), drawn(24, seed=seed + 1)
    assert hsic(x, y) == pytest.approx(hsic(x[order], y[order]), rel=1e-6, abs=1e-9)
    assert hsic(x, y) == pytest.approx(hsic(y, x), rel=1e-9)
    assert hsic(x, y) >= -1e-9


def test_samples_that_are_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="paired samples, not 3 and 4"):
        hsic(drawn(3), drawn(4))
    with pytest.raises(ValueError, match=r"\[T, d\]"):
        trajectory(drawn(5, 8), drawn(7))


def test_the_states_that_were_planted_to_know_the_answer_are_the_peaks() -> None:
    answer, states = drawn(200), drawn(60, 200, seed=2)
    for place in (13, 41):
        states[place] = answer + 0.3 * states[place]
    values = trajectory(states, answer)
    assert sorted(range(60), key=values.__getitem__)[-2:] in ([13, 41], [41, 13])
    assert {13, 41} <= set(peaks(values))
    assert len(peaks(values)) < 10


def test_nothing_stands_out_where_all_is_equal_or_little_is_there() -> None:
    assert peaks([0.5] * 20) == []
    assert peaks([0.0, 9.0, 0.0]) == []
    assert peaks([0.0, 0.1, 0.2, 0.1, 0.0, 5.0, 0.1]) == [5]


def test_tokens_at_peaks_are_counted_against_how_often_they_stand_anywhere() -> None:
    thoughts = [["So", " the", " risk", " the"], [" so", " the", " the", "\n"]]
    first, second = tokens_at_peaks(thoughts, [[0, 1], [0]])
    assert (first.token, first.at_peaks, first.of) == ("so", 2, 2)
    assert first.lift == pytest.approx(8 / 3, abs=1e-3)
    assert (second.token, second.at_peaks, second.of) == ("the", 1, 4)
