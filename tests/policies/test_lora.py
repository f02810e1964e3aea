"""A policy with adapters is trained through them alone, and is the plain merged policy to everybody else."""

from __future__ import annotations

import shutil

import pytest
import torch
from test_step import DULL, make_batch
from transformers import AutoModelForCausalLM, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from safeladder.policies import checkpoint, lora, weights
from safeladder.policies.checkpoint import CheckpointError, CheckpointState
from safeladder.policies.lora import LoraError, LoraOptions, attach
from safeladder.policies.model import load, resolve
from safeladder.policies.scoring import completion_logprobs
from safeladder.policies.step import LearnerStep
from safeladder.policies.tensors import distinct

SEQUENCES = [((1, 2, 3), (4, 5, 6)), ((7, 8), (9, 10, 11, 12))]
OPTIONS = LoraOptions(rank=4, alpha=6.0)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return resolve("tiny", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def with_biases(tmp_path_factory):
    """A model whose attention has biases and whose head is not tied."""
    folder = tmp_path_factory.mktemp("biases")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        config = Qwen2Config(
            vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, initializer_range=0.3, tie_word_embeddings=False, dtype="float32",
        )  # fmt: skip
        model = Qwen2ForCausalLM(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
        model.save_pretrained(folder)
    return folder


@pytest.fixture(params=["tiny", "with_biases"])
def folder(request):
    return request.getfixturevalue(request.param)


def plain(folder, dtype="float32"):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


def moved(model, seed=3):
    """Adapters as training leaves them: none of the matrices is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def scores(model):
    with torch.no_grad():
        return torch.cat(completion_logprobs(model, SEQUENCES)).float()


def copies(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# ------------------------------------------------------------------------------------------------------------ attaching


def test_the_policy_starts_as_its_base_and_keeps_its_class(folder):
    model = attach(plain(folder), OPTIONS)
    assert type(model) is type(plain(folder))
    assert torch.equal(scores(model), scores(plain(folder)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_the_adapters_are_trained_and_in_float32(folder, dtype):
    model = attach(plain(folder, dtype), OPTIONS)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    linear = [name for name, module in plain(folder).named_modules() if isinstance(module, torch.nn.Linear)]
    assert set(lora.adapted_layers(model)) == set(linear) - {"lm_head"}
    assert len(trained) == 2 * (len(linear) - 1)
    assert all(".lora_" in name and p.dtype == torch.float32 for name, p in trained.items())
    assert all(p.dtype == getattr(torch, dtype) for name, p in model.named_parameters() if name not in trained)


def test_targets_are_the_ends_of_names(folder):
    model = attach(plain(folder), LoraOptions(rank=2, targets=("q_proj", "layers.1.mlp.down_proj")))
    ends = ("layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj", "layers.1.mlp.down_proj")
    assert sorted(lora.adapted_layers(model)) == sorted(f"model.{end}" for end in ends)


def test_a_head_of_its_own_can_have_an_adapter(with_biases):
    model = moved(attach(plain(with_biases), LoraOptions(rank=2, targets=["lm_head"])))
    merged = plain(with_biases)
    weights.copy_into(merged, lora.merged_state(model).collected())
    torch.testing.assert_close(scores(model), scores(merged), atol=1e-5, rtol=1e-5)


def test_first_values_come_from_the_seed_and_leave_the_random_state_alone(tiny):
    before = torch.get_rng_state()
    first, same, other = (attach(plain(tiny), LoraOptions(rank=2, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    states = [lora.adapter_state(model).collected() for model in (first, same, other)]
    assert all(torch.equal(states[1][name], tensor) for name, tensor in states[0].items())
    assert any(not torch.equal(states[2][name], tensor) for name, tensor in states[0].items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"targets": "q_proj"}, "targets is 'q_proj'; give 'all-linear' or a list"),
        ({"targets": ()}, "targets is empty"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(LoraError, match=message):
        LoraOptions(**options)


def test_what_cannot_be_adapted_is_named_and_the_model_stays_as_it_was(tiny):
    model = plain(tiny)
    before = copies(model)
    with pytest.raises(LoraError, match=r"'q_porj' names no linear layer of LlamaForCausalLM; it has .*q_proj"):
        attach(model, LoraOptions(targets=("k_proj", "q_porj")))
    with pytest.raises(LoraError, match=r"lm_head shares its weight with model.embed_tokens.weight"):
        attach(model, LoraOptions(targets=["lm_head"]))
    assert copies(model).keys() == before.keys() and all(p.requires_grad for p in model.parameters())
    with pytest.raises(LoraError, match="adapters already"):
        attach(attach(model, OPTIONS), OPTIONS)


# ------------------------------------------------------------------------------------------------------------- merging


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_merged_set_has_the_plain_models_names_types_and_shapes(folder, dtype):
    expected = distinct(plain(folder, dtype))
    found = lora.merged_state(moved(attach(plain(folder, dtype), OPTIONS))).parts
    assert {n: (p.dtype, p.shape) for n, p in found.items()} == {n: (t.dtype, t.shape) for n, t in expected.items()}


def test_a_merged_weight_is_the_base_plus_the_scaled_product(folder):
    model, base = moved(attach(plain(folder), OPTIONS)), distinct(plain(folder))
    adapters, merged = lora.adapter_state(model).collected(), lora.merged_state(model).collected()
    adapted = {f"{layer}.weight" for layer in lora.adapted_layers(model)}
    for name, tensor in merged.items():
        if name in adapted:
            layer = name.removesuffix(".weight")
            product = adapters[f"{layer}.lora_B.weight"].double() @ adapters[f"{layer}.lora_A.weight"].double()
            torch.testing.assert_close(tensor.double(), base[name].double() + 6.0 / 4 * product, atol=1e-6, rtol=1e-6)
            assert not torch.equal(tensor, base[name])
        else:
            assert torch.equal(tensor, base[name]), name


@pytest.mark.parametrize(("dtype", "share"), [("float32", 1e-4), ("bfloat16", 0.5)])
def test_a_publication_makes_a_plain_reader_the_same_policy(folder, tmp_path, dtype, share):
    """What rounding leaves between them is a small share of what the adapters have changed."""
    model = moved(attach(plain(folder, dtype), OPTIONS))
    weights.publish(model, tmp_path, 1)
    reader = plain(folder, dtype)
    before = scores(reader)
    weights.load_into(reader, weights.folder(tmp_path, 1))
    assert (scores(model) - scores(reader)).abs().mean() < share * (scores(model) - before).abs().mean()


# ------------------------------------------------------------------------------------------------------------- training


def test_a_step_moves_the_adapters_and_nothing_else(tiny):
    model = attach(load(tiny)[0], OPTIONS)
    before = copies(model)
    LearnerStep(model, DULL).train(make_batch(model))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if ".lora_B." in name}  # A moves as soon as B is no longer zero


def test_adapters_go_from_one_model_to_another(folder):
    model, other = moved(attach(plain(folder), OPTIONS)), attach(plain(folder), OPTIONS)
    state = lora.adapter_state(model).collected()
    lora.load_adapter_state(other, state)
    assert torch.equal(scores(model), scores(other))
    name = min(state)
    faults = {
        f"the set lacks {name}": {key: tensor for key, tensor in state.items() if key != name},
        "the set also has extra": {**state, "extra": torch.zeros(1)},
        rf"{name} is \[1\], the model has": {**state, name: torch.zeros(1)},
    }
    before = copies(other)
    for message, tensors in faults.items():
        with pytest.raises(LoraError, match=message):
            lora.load_adapter_state(other, tensors)
    assert all(torch.equal(tensor, before[key]) for key, tensor in other.state_dict().items())
    with pytest.raises(LoraError, match="no adapters"):
        lora.load_adapter_state(plain(folder), state)


# ---------------------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture
def learner(tiny):
    model, tokenizer = load(tiny)
    made = LearnerStep(attach(model, OPTIONS), DULL)
    made.tokenizer = tokenizer
    for seed in (0, 1):
        made.train(make_batch(model, seed=seed))
    return made


def save(learner, directory):
    state = CheckpointState(step=2, version=7)
    return checkpoint.save(directory, 2, learner.model, learner.tokenizer, learner.optimizer, state)


def test_the_step_after_a_restore_is_the_same_bit_for_bit(learner, tiny, tmp_path):
    path = save(learner, tmp_path)
    batch = make_batch(learner.model, seed=5)
    report = learner.train(batch)
    resumed = LearnerStep(attach(load(tiny)[0], LoraOptions(rank=4, alpha=6.0, seed=9)), DULL)
    resumed.train(batch)  # another past, which the restore must leave nothing of
    assert checkpoint.restore(path, resumed.model, resumed.optimizer).version == 7
    resumed.steps_done = 2
    again = resumed.train(batch)
    assert (again.loss, again.grad_norm) == (report.loss, report.grad_norm)
    assert all(torch.equal(tensor, copies(learner.model)[name]) for name, tensor in copies(resumed.model).items())


def test_the_checkpoint_is_the_merged_model_to_transformers(learner, tmp_path):
    path = save(learner, tmp_path)
    model, report = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert type(model) is LlamaForCausalLM and not any(report.values())
    merged = lora.merged_state(learner.model).collected()
    assert all(torch.equal(tensor, merged[name]) for name, tensor in distinct(model).items())
    torch.testing.assert_close(scores(model.eval()), scores(learner.model), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (LoraOptions(rank=8, alpha=6.0), "trained with rank 4, the model has rank 8"),
        (LoraOptions(rank=4, alpha=32.0), "trained with alpha 6.0, the model has alpha 32.0"),
        (LoraOptions(rank=4, alpha=6.0, targets=("q_proj",)), "trained with targets all-linear"),
        (None, "holds adapters and the model has none"),
    ],
)
def test_other_adapters_are_refused_and_nothing_changes(learner, tiny, tmp_path, options, message):
    path = save(learner, tmp_path)
    model = load(tiny)[0] if options is None else attach(load(tiny)[0], options)
    before = copies(model)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.restore(path, model, LearnerStep(model, DULL).optimizer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in copies(model).items())


def test_adapters_over_the_merged_weights_are_refused(learner, tmp_path):
    path = save(learner, tmp_path)
    model = attach(load(path)[0], OPTIONS)
    with pytest.raises(CheckpointError, match="over other weights"):
        checkpoint.restore(path, model, LearnerStep(model, DULL).optimizer)


def test_a_fully_trained_checkpoint_is_not_restored_into_adapters(tiny, tmp_path):
    model, tokenizer = load(tiny)
    full = LearnerStep(model, DULL)
    path = checkpoint.save(tmp_path, 0, model, tokenizer, full.optimizer, CheckpointState(step=0, version=0))
    adapted = attach(load(tiny)[0], OPTIONS)
    with pytest.raises(CheckpointError, match="holds a fully trained policy and the model has adapters"):
        checkpoint.restore(path, adapted, LearnerStep(adapted, DULL).optimizer)


def test_an_altered_adapter_is_refused(learner, tiny, tmp_path):
    path = save(learner, tmp_path)
    copy = shutil.copytree(path, tmp_path / "step-00000003")
    data = bytearray((copy / "adapter.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "adapter.safetensors").write_bytes(data)
    model = attach(load(tiny)[0], OPTIONS)
    with pytest.raises(CheckpointError, match=r"adapter\.safetensors was altered"):
        checkpoint.restore(copy, model, LearnerStep(model, DULL).optimizer)
