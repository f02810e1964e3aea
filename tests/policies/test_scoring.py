"""A sequence is scored the same packed as alone, sharing its prompt or not, whatever the chunks of the head."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Gemma2Config, MistralConfig, Qwen2Config

from safeladder.policies import model as models
from safeladder.policies.branches import use
from safeladder.policies.packing import pack_branches
from safeladder.policies.scoring import completion_logprobs, head_reaches_output


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return models.load(models.resolve("tiny", tmp_path_factory.mktemp("cache")))


def one_by_one(model, prompt, completion, temperature=1.0):
    logits = model(torch.tensor([prompt + completion])).logits[0].float() / temperature
    return logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(completion)[:, None])[:, 0]


def gradients(model, scores):
    model.zero_grad()
    sum((score * (i + 1)).sum() for i, score in enumerate(scores)).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


# ------------------------------------------------------------------------------------------------------- packing

prompts = st.lists(st.sampled_from([(1,), (2, 3), (4, 5, 6, 7)]), max_size=20)


@given(prompts, st.integers(1, 20), st.randoms(use_true_random=False))
def test_a_pack_holds_neighbours_and_keeps_to_its_budget(chosen, budget, random):
    lengths = [random.randrange(9) for _ in chosen]
    packs = pack_branches(chosen, lengths, budget)
    assert [i for indices in packs for i in indices] == list(range(len(chosen)))
    for indices in packs:
        shared = sum(len(chosen[i]) for at, i in enumerate(indices) if not at or chosen[i] != chosen[indices[at - 1]])
        assert len(indices) == 1 or shared + sum(lengths[i] for i in indices) <= budget


def test_a_group_that_fits_a_pack_is_not_cut():
    assert pack_branches([(1,)] * 3 + [(2,)] * 3, [2] * 6, 10) == [[0, 1, 2], [3, 4, 5]]
    assert pack_branches([(1,)] * 3 + [(2,)] * 3, [2] * 6, 14) == [[0, 1, 2, 3, 4, 5]]
    assert pack_branches([(1,)] * 3 + [(2,)] * 3, [2] * 6, 5) == [[0, 1], [2], [3, 4], [5]]


@pytest.mark.parametrize(("lengths", "budget"), [([1], 0), ([-1], 4)])
def test_packing_refuses_what_makes_no_sense(lengths, budget):
    with pytest.raises(ValueError):
        pack_branches([(1,)], lengths, budget)


# ------------------------------------------------------------------------------------------------------- scoring

token = st.integers(0, 300)
pair = st.tuples(st.lists(token, min_size=1, max_size=12), st.lists(token, max_size=12))


@settings(max_examples=25, deadline=None)
@given(st.lists(pair, max_size=6), st.sampled_from([0.5, 1.0, 1.7]), st.sampled_from([8, 30, 1024]))
def test_packed_scores_equal_those_of_each_sequence_alone(tiny, sequences, temperature, budget):
    model, _ = tiny
    with torch.no_grad():
        scores = completion_logprobs(model, sequences, temperature, budget)
        assert [len(score) for score in scores] == [len(completion) for _, completion in sequences]
        for score, (prompt, completion) in zip(scores, sequences, strict=True):
            assert score.dtype == torch.float32
            if completion:
                torch.testing.assert_close(score, one_by_one(model, prompt, completion, temperature), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "sequences",
    [
        [([5, 9, 30], [7, 8]), ([100], [4]), ([40] * 9, [3, 200, 17, 2])],
        [([5, 9, 30], [7, 8]), ([5, 9, 30], [7, 4, 4]), ([5, 9, 30], [9]), ([40] * 9, [3]), ([40] * 9, [3, 8, 17])],
    ],
    ids=["prompts of their own", "shared prompts"],
)
def test_packed_gradients_equal_those_of_each_sequence_alone(tiny, sequences):
    model, _ = tiny
    alone = gradients(model, [one_by_one(model, prompt, completion) for prompt, completion in sequences])
    for head_tokens in (None, 1, 3):
        packed = gradients(model, completion_logprobs(model, sequences, head_tokens=head_tokens))
        for name in alone:
            torch.testing.assert_close(packed[name], alone[name], atol=1e-4, rtol=1e-4)


def test_the_logits_of_a_pack_never_exist_together(tiny):
    """The largest tensor that a scored pack makes holds `head_tokens` rows of the vocabulary."""
    model, _ = tiny
    sequences = [([1, 2], list(range(40))), ([1, 2], list(range(30)))]
    largest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor) and made.shape[-1:] == (model.config.vocab_size,):
                largest.append(made.shape[0])
            return made

    with Watch():
        sum(score.sum() for score in completion_logprobs(model, sequences, head_tokens=7)).backward()
    weight = model.config.hidden_size  # the head's own, transposed
    assert max(set(largest) - {weight}) == 7 < 70 != weight


SMALL = {
    "vocab_size": 60, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
KINDS = {
    "two kinds of layers, capped head, eager": Gemma2Config(
        **SMALL, sliding_window=3, final_logit_softcapping=1.5, attn_implementation="eager"
    ),
    "window, branches": MistralConfig(**SMALL, sliding_window=4),
    "grouped keys, biases, branches": Qwen2Config(**SMALL),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_attention_scores_a_packed_row_as_its_sequences_alone(kind):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(KINDS[kind]).eval()
    sequences = [([1, 2, 3, 4, 5], [6, 7, 8]), ([1, 2, 3, 4, 5], [9] * 7), ([1, 2], [3]), ([5] * 6, [1, 2, 3])]
    alone = gradients(model, [one_by_one(model, prompt, completion) for prompt, completion in sequences])
    together = completion_logprobs(model, sequences)
    for score, (prompt, completion) in zip(together, sequences, strict=True):
        torch.testing.assert_close(score, one_by_one(model, prompt, completion))
    packed = gradients(model, together)
    for name in alone:
        torch.testing.assert_close(packed[name], alone[name], atol=1e-5, rtol=1e-4)
    assert head_reaches_output(model) == ("capped" not in kind)
    assert use(model) == ("branches" in kind)


def test_a_model_that_attends_by_branches_still_generates_as_before(tiny):
    model, _ = tiny
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert use(model)
    ours = model(ids, attention_mask=mask).logits
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(model(ids, attention_mask=mask).logits, ours, atol=0, rtol=0)


def test_a_plain_head_is_found_to_be_one(tiny):
    assert head_reaches_output(tiny[0])


def test_a_sequence_is_not_changed_by_its_neighbours(tiny):
    model, _ = tiny
    first = ([5, 6, 7], [8, 9])
    with torch.no_grad():
        beside_one = completion_logprobs(model, [first, ([1, 2], [3, 4, 5])])[0]
        beside_other = completion_logprobs(model, [first, ([200, 201], [30, 40, 50])])[0]
    torch.testing.assert_close(beside_one, beside_other, atol=0, rtol=0)


def test_scoring_refuses_an_empty_prompt_and_temperature_zero(tiny):
    model, _ = tiny
    with pytest.raises(ValueError, match="sequence 1 has an empty prompt"):
        completion_logprobs(model, [([1], [2]), ([], [2])])
    with pytest.raises(ValueError, match="temperature"):
        completion_logprobs(model, [([1], [2])], temperature=0)
