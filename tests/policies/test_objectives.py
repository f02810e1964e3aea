import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import flat, inputs, lengths, vectors

from safeladder.policies.corrections import log_ratios, token_mask, token_truncate
from safeladder.policies.objectives import aggregate, clip_fraction, clipped, denominator, over_tokens, reference_kl

# verl's names of the aggregations; its sum of tokens per sequence, averaged over sequences, is "constant" with 1 token
MODES = {"token-mean": "token_mean", "seq-mean-token-mean": "sequence_mean", "seq-mean-token-sum": "constant"}


def column(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("mode", sorted(MODES))
def test_clipped_loss_and_gradient_equal_the_independent_implementation(mode):
    cases = vectors("policy_losses")
    chosen = [case for case in cases if case.get("loss_name") == "vanilla" and case["agg"] == mode]
    assert chosen
    for case in chosen:
        given_inputs = inputs(cases, case["seed"])
        mask = given_inputs["mask"]
        sizes = lengths(mask)
        new = flat(given_inputs["new"], mask).requires_grad_()
        old, advantages = flat(given_inputs["old"], mask), flat(given_inputs["adv"], mask)
        losses = clipped(
            new, old, advantages, torch.ones_like(new), case["clip_low"], case["clip_high"], dual=case["clip_c"]
        )
        divisor = denominator(sizes, MODES[mode], max_tokens=1)
        loss = aggregate(losses, torch.ones_like(losses), sizes, MODES[mode], divisor)
        loss.backward()
        assert float(loss.detach()) == pytest.approx(case["loss"], abs=1e-7)
        torch.testing.assert_close(new.grad, flat(case["grad"], mask), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_estimates_equal_the_independent_implementation(kind):
    for case in vectors("policy_losses"):
        if "inputs_for_seed" in case:
            estimates = reference_kl(column(case["new"]), column(case["old"]), kind)
            # verl cuts k3 off at 10, which also cuts its gradient; ours is cut only where the difference exceeds 20
            torch.testing.assert_close(
                estimates.clamp(max=10), column(case["kl"][kind]).clamp(max=10), atol=1e-6, rtol=1e-6
            )


@pytest.mark.parametrize("correction", [None, "mask", "clamp"])
def test_decoupled_loss_and_gradient_equal_the_independent_implementation(correction):
    cases = vectors("decoupled_loss")
    for case in cases:
        options = case.get("options")
        if options is None or "importance_sampling_level" in options:
            continue
        rule = options["behaviour_correction"]
        if (rule is None) != (correction is None) or (rule and rule[:2] != ["token", correction]):
            continue
        given_inputs = inputs(cases, case["seed"])
        mask = given_inputs["mask"]
        new = flat(given_inputs["new"], mask).requires_grad_()
        proximal, advantages = flat(given_inputs["proximal"], mask), flat(given_inputs["adv"], mask)
        log_ratio = log_ratios(proximal, flat(given_inputs["behaviour"], mask))
        weights = torch.ones_like(new)
        if rule:
            weights = {"mask": token_mask, "clamp": token_truncate}[correction](log_ratio, 0.0, rule[2])
        losses = clipped(new, proximal, advantages, weights, 0.2, 0.28, dual=options.get("c_clip"))
        sizes = lengths(mask)
        loss = aggregate(losses, torch.ones_like(losses), sizes, "token_mean", denominator(sizes, "token_mean"))
        loss.backward()
        assert float(loss.detach()) == pytest.approx(case["loss"], abs=1e-6)
        torch.testing.assert_close(new.grad, flat(case["grad"], mask), atol=1e-6, rtol=1e-5)


def test_on_policy_gradient_is_that_of_reinforce():
    logprobs = torch.tensor([-1.0, -0.3, -2.0], requires_grad=True)
    advantages = torch.tensor([0.7, -1.2, 0.0])
    clipped(logprobs, logprobs.detach(), advantages, torch.ones(3)).sum().backward()
    torch.testing.assert_close(logprobs.grad, -advantages)


@settings(max_examples=60, deadline=None)
@given(advantage=st.just(0.0) | st.floats(1e-3, 3) | st.floats(-3, -1e-3), drift=st.floats(-2, 2))
def test_the_gradient_is_zero_exactly_where_the_clip_removes_it(advantage, drift):
    logprobs = torch.tensor([drift - 1.0], dtype=torch.float64, requires_grad=True)
    proximal, advantages = torch.tensor([-1.0], dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64)
    clipped(logprobs, proximal, advantages, torch.ones(1)).sum().backward()
    removed = clip_fraction(logprobs, proximal, advantages, 0.2, 0.2) == 1
    assert bool(removed) == (logprobs.grad.item() == 0 and advantage != 0)


def test_dual_clip_bounds_the_loss_of_negative_advantages_only():
    proximal, logprobs = torch.zeros(2), torch.tensor([3.0, 3.0])
    losses = clipped(logprobs, proximal, torch.tensor([-1.0, 1.0]), torch.ones(2), dual=3.0)
    torch.testing.assert_close(losses, torch.tensor([3.0, -1.2]))
    with pytest.raises(ValueError, match="above 1"):
        clipped(logprobs, proximal, torch.ones(2), torch.ones(2), dual=1.0)


def test_weights_and_proximal_carry_no_gradient():
    tensors = [torch.randn(4, requires_grad=True) for _ in range(3)]
    logprobs, proximal, weights = tensors
    clipped(logprobs, proximal, torch.ones(4), weights).sum().backward()
    assert logprobs.grad is not None
    assert proximal.grad is None
    assert weights.grad is None


def test_an_absurd_ratio_stays_finite():
    logprobs = torch.tensor([0.0, -500.0], requires_grad=True)
    losses = clipped(logprobs, torch.tensor([-500.0, 0.0]), torch.tensor([-1.0, 1.0]), torch.ones(2))
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(logprobs.grad).all()


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=6), data=st.data())
@pytest.mark.parametrize("mode", ["token_mean", "sequence_mean", "constant"])
def test_aggregation_is_additive_over_any_split_into_packs(mode, sizes, data):
    losses = torch.linspace(-1, 2, sum(sizes), dtype=torch.float64)
    mask = torch.ones_like(losses)
    divisor = denominator(sizes, mode, max_tokens=7)
    whole = aggregate(losses, mask, sizes, mode, divisor)
    cut = data.draw(st.integers(0, len(sizes)))
    tokens = sum(sizes[:cut])
    parts = aggregate(losses[:tokens], mask[:tokens], sizes[:cut], mode, divisor) + aggregate(
        losses[tokens:], mask[tokens:], sizes[cut:], mode, divisor
    )
    torch.testing.assert_close(whole, parts)


@pytest.mark.parametrize("mode", ["token_mean", "sequence_mean", "constant"])
def test_masking_one_sequence_leaves_the_gradient_of_another(mode):
    sizes = [3, 2]
    gradients = []
    for second in (1.0, 0.0):
        losses = torch.tensor([0.5, 1.0, -1.0, 9.0, float("inf") if second == 0 else 2.0], requires_grad=True)
        mask = over_tokens(torch.tensor([1.0, second]), sizes)
        aggregate(losses, mask, sizes, mode, denominator(sizes, mode, max_tokens=4)).backward()
        gradients.append(losses.grad)
    torch.testing.assert_close(gradients[0][:3], gradients[1][:3])
    assert not gradients[1][3:].any()


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="known: token_mean"):
        denominator([1], "mean")
    with pytest.raises(ValueError, match="known: k1, k2, k3"):
        reference_kl(torch.zeros(1), torch.zeros(1), "k4")
    with pytest.raises(ValueError, match="max_tokens"):
        denominator([1], "constant")
    with pytest.raises(ValueError, match="3 losses"):
        aggregate(torch.zeros(3), torch.ones(3), [1, 1], "token_mean", 1.0)


@settings(max_examples=60, deadline=None)
@given(current=st.floats(-30, 0), reference=st.floats(-30, 0))
def test_k2_and_k3_are_never_negative_and_zero_at_the_reference(current, reference):
    for kind in ("k2", "k3"):
        value = reference_kl(column([current]), column([reference]), kind)
        assert float(value) >= 0 or math.isclose(float(value), 0, abs_tol=1e-12)
        assert float(reference_kl(column([current]), column([current]), kind)) == 0


@pytest.mark.parametrize(("kind", "direction"), [("k1", "none"), ("k2", "forward"), ("k3", "reverse")])
def test_expected_gradient_of_a_kl_estimate_is_the_one_its_docstring_names(kind, direction):
    logits = torch.tensor([0.3, -0.8, 1.1], dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.tensor([-0.2, 0.9, 0.1], dtype=torch.float64), 0)
    policy = torch.log_softmax(logits, 0)
    expected = (policy.detach().exp() * reference_kl(policy, reference, kind)).sum()
    (gradient,) = torch.autograd.grad(expected, logits, retain_graph=True)
    target = {
        "none": 0.0 * policy.sum(),
        "forward": (policy.exp() * (policy - reference)).sum(),
        "reverse": (reference.exp() * (reference - policy)).sum(),
    }[direction]
    (exact,) = torch.autograd.grad(target, logits)
    torch.testing.assert_close(gradient, exact)
