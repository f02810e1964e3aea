import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vectors import vectors

from safeladder.policies.aggregation import aggregate, coefficients, mean_by_sequence, reference_kl, sum_by_sequence

MODES = ["token_mean", "sequence_mean", "group_token_mean", "constant"]


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_estimates_equal_the_independent_implementation(kind):
    for case in vectors("policy_losses"):
        if "inputs_for_seed" in case:
            new, old = (torch.tensor(case[name], dtype=torch.float64) for name in ("new", "old"))
            estimates = reference_kl(new, old, kind)
            # verl cuts k3 off at 10, which also cuts its gradient; ours is cut only where the difference exceeds 20
            expected = torch.tensor(case["kl"][kind], dtype=torch.float64)
            torch.testing.assert_close(estimates.clamp(max=10), expected.clamp(max=10), atol=1e-6, rtol=1e-6)


def test_estimates_and_their_gradients_have_the_means_that_they_claim():
    """Exact expectations over a vocabulary of six, instead of samples."""
    generator = torch.Generator().manual_seed(0)
    logits, other = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2))
    logits.requires_grad_()
    current, reference = logits.log_softmax(0), other.log_softmax(0)
    chances = current.detach().exp()

    def gradient(value):
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    forwards = (current.exp() * (current - reference)).sum()  # KL(current || reference)
    backwards = (reference.exp() * (reference - current)).sum()
    means = {kind: (chances * reference_kl(current, reference, kind)).sum() for kind in ("k1", "k2", "k3")}
    torch.testing.assert_close(means["k1"], forwards)
    torch.testing.assert_close(means["k3"], forwards)
    torch.testing.assert_close(gradient(means["k1"]), torch.zeros_like(logits))
    torch.testing.assert_close(gradient(means["k2"]), gradient(forwards))
    torch.testing.assert_close(gradient(means["k3"]), gradient(backwards))


def test_kl_estimates_vanish_at_the_reference_and_only_there():
    equal = torch.tensor([-1.0, -2.0])
    for kind in ("k1", "k2", "k3"):
        assert reference_kl(equal, equal, kind).tolist() == [0.0, 0.0]
    apart = equal + torch.tensor([0.5, -0.5])
    assert (reference_kl(apart, equal, "k2") > 0).all()
    assert (reference_kl(apart, equal, "k3") > 0).all()
    assert float(reference_kl(torch.zeros(1), torch.tensor([math.log(2)]), "k3")) == pytest.approx(1 - math.log(2))
    with pytest.raises(ValueError, match="unknown KL"):
        reference_kl(equal, equal, "k9")


sizes = st.lists(st.integers(0, 6), min_size=1, max_size=8)


@given(lengths=sizes, data=st.data())
def test_equal_losses_average_to_themselves(lengths, data):
    """Whatever weighs the same, the mean of equal numbers is that number (where there are tokens to speak of)."""
    groups = data.draw(st.lists(st.integers(0, 2), min_size=len(lengths), max_size=len(lengths)))
    losses = torch.full((sum(lengths),), 3.0, dtype=torch.float64)
    mask = torch.ones(sum(lengths))
    if any(lengths):
        assert float(aggregate(losses, mask, lengths, coefficients(lengths, groups, "token_mean"))) == pytest.approx(3)
    if all(lengths):
        for mode in ("sequence_mean", "group_token_mean"):
            assert float(aggregate(losses, mask, lengths, coefficients(lengths, groups, mode))) == pytest.approx(3)


def test_what_weighs_the_same_by_hand():
    lengths, groups = [1, 3, 2], [0, 0, 1]
    losses = torch.tensor([6.0, 1, 1, 1, 2, 2])

    def of(mode, *more):
        return float(aggregate(losses, torch.ones(6), lengths, coefficients(lengths, groups, mode, *more)))

    assert of("token_mean") == pytest.approx(13 / 6)
    assert of("sequence_mean") == pytest.approx((6 + 1 + 2) / 3)
    assert of("group_token_mean") == pytest.approx((9 / 4 + 4 / 2) / 2)
    assert of("constant", 10) == pytest.approx(13 / 30)


def test_a_masked_loss_leaves_no_trace_even_where_it_is_infinite():
    losses = torch.tensor([1.0, math.inf, math.nan])
    assert float(aggregate(losses, torch.tensor([1, 0, 0]), [3], [0.5])) == 0.5


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_batch_and_an_empty_sequence_divide_nothing_by_zero(mode):
    assert coefficients([], [], mode, 4) == []
    assert all(math.isfinite(share) for share in coefficients([0, 0], [0, 1], mode, 4))


def test_lengths_and_modes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="3 losses"):
        aggregate(torch.zeros(3), torch.ones(3), [2], [1.0])
    with pytest.raises(ValueError, match="max_tokens"):
        coefficients([1], [0], "constant")
    with pytest.raises(ValueError, match="unknown aggregation"):
        coefficients([1], [0], "mean")


def test_sums_and_means_of_sequences_are_over_kept_tokens():
    values, kept = torch.tensor([1.0, 2, 4, 8]), torch.tensor([True, False, True, True])
    assert sum_by_sequence(values, kept, [2, 0, 2]).tolist() == [1.0, 0.0, 12.0]
    assert mean_by_sequence(values, kept, [2, 0, 2]).tolist() == [1.0, 0.0, 6.0]
