"""The short way through the Llama family gives the logits of the model's own forward, whatever joins, leaves or is swapped."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from safeladder.policies.engines import products
from safeladder.policies.engines.decoder import TransformersDecoder
from safeladder.policies.engines.llama import LlamaDecoder, serves
from safeladder.policies.tensors import distinct

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
SMALL |= {"intermediate_size": 48, "vocab_size": 97, "initializer_range": 0.3, "max_position_embeddings": 256}


def built(kind: str, **more: object) -> torch.nn.Module:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SMALL, **more})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.copy_(torch.rand_like(parameter) + 0.5)
    return model


KINDS = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "tie_word_embeddings": True}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("mistral", {"sliding_window": None}),
]


def rows_of(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(count)
    lengths = torch.randint(2, 30, (count,), generator=generator).tolist()
    return [torch.randint(0, 97, (length,), generator=generator).tolist() for length in lengths]


@torch.inference_mode()
def wanted(model: torch.nn.Module, rows: list[list[int]]) -> torch.Tensor:
    return torch.stack([model(torch.tensor([ids]), use_cache=False).logits[0, -1] for ids in rows])


@pytest.mark.parametrize(("kind", "more"), KINDS)
@pytest.mark.parametrize("way", ["short", "generic"])
@torch.inference_mode()
def test_prompts_steps_and_changes_of_the_batch_give_the_models_logits(kind, more, way):
    model, own = built(kind, **more), built(kind, **more)
    assert serves(model)
    decoder = LlamaDecoder(model) if way == "short" else TransformersDecoder(model)
    rows = rows_of(products.PACKED_ROWS + 2)
    states, logits = decoder.extend([(ids, []) for ids in rows])
    torch.testing.assert_close(logits, wanted(own, rows), atol=2e-4, rtol=0)
    decoder.join(states)
    for kept in [range(len(rows)), range(5), [0, 4, 2], [1], []]:
        rows = [rows[at] for at in kept]
        decoder.keep(list(kept), [len(ids) for ids in rows])
        assert decoder.rows == len(rows)
        for token in (5, 50):
            if rows:
                logits = decoder.step([token] * len(rows), [len(ids) for ids in rows])
                rows = [[*ids, token] for ids in rows]
                torch.testing.assert_close(logits, wanted(own, rows), atol=2e-4, rtol=0)
        if len(rows) == 3:  # one joins that begins with what another row has computed, and goes on from there
            before = decoder.states(1, len(rows[1]))
            (states,), logits = decoder.extend([([7, 8, 9], before)])
            rows.append([*rows[1], 7, 8, 9])
            torch.testing.assert_close(logits, wanted(own, rows[-1:]), atol=2e-4, rtol=0)
            decoder.join([states])


@torch.inference_mode()
def test_parts_that_go_on_from_prefixes_of_any_length_see_their_own_and_no_other():
    model, own = built("llama"), built("llama")
    decoder = LlamaDecoder(model)
    rows = rows_of(9)
    befores = [part[:length] for part, length in zip(rows, [0, 1, 2, 3, 5, 6, 7, 1, 0], strict=True)]
    news = [[60 + at] * count for at, count in enumerate([2, 2, 1, 2, 2, 2, 1, 2, 2])]
    known = [decoder.extend([(ids, [])])[0][0] if ids else [] for ids in befores]
    states, logits = decoder.extend(list(zip(news, known, strict=True)))
    whole = [[*before, *new] for before, new in zip(befores, news, strict=True)]
    torch.testing.assert_close(logits, wanted(own, whole), atol=2e-4, rtol=0)
    decoder.join(states)
    logits = decoder.step([5] * len(whole), [len(ids) for ids in whole])
    torch.testing.assert_close(logits, wanted(own, [[*ids, 5] for ids in whole]), atol=2e-4, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
@torch.inference_mode()
def test_swapped_weights_are_seen_by_every_product_at_once(tied):
    model, other = built("llama", tie_word_embeddings=tied), built("llama", tie_word_embeddings=tied)
    for parameter in other.parameters():
        parameter.mul_(1.3)
    tensors = distinct(other)
    decoder = LlamaDecoder(model)
    decoder.load(tensors, decoder.prepare(tensors))
    rows = rows_of(products.PACKED_ROWS)
    states, logits = decoder.extend([(ids, []) for ids in rows])
    torch.testing.assert_close(logits, wanted(other, rows), atol=2e-4, rtol=0)
    for count in (1, 3, len(rows)):
        decoder.join(states[:count])
        logits = decoder.step([1] * count, [len(ids) for ids in rows[:count]])
        torch.testing.assert_close(logits, wanted(other, [[*ids, 1] for ids in rows[:count]]), atol=2e-4, rtol=0)
        decoder.keep([], [])
    assert {name: value.shape for name, value in distinct(model).items()} == {k: v.shape for k, v in tensors.items()}


def test_a_model_with_other_layers_takes_the_generic_way():
    assert not serves(built("llama", hidden_act="gelu"))
    assert not serves(built("mistral", sliding_window=8))
    changed = copy.deepcopy(built("llama"))
    changed.model.layers[0].mlp.down_proj = torch.nn.Sequential(torch.nn.Linear(48, 32))
    assert not serves(changed)
