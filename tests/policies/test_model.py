"""The policy is found by name, speaks through its template, and is scored the same packed as alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safeladder.policies import model as models
from safeladder.policies.builtin import tiny_tokenizer
from safeladder.policies.model import ModelError, completion_logprobs, encode_prompt
from safeladder.policies.packing import pack


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return models.load(models.resolve("tiny", tmp_path_factory.mktemp("cache")))


def one_by_one(model, prompt, completion, temperature=1.0):
    logits = model(torch.tensor([prompt + completion])).logits[0].float() / temperature
    return logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(completion)[:, None])[:, 0]


# ------------------------------------------------------------------------------------------------------- packing


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 60))
def test_packing_keeps_every_sequence_once_and_within_the_budget(lengths, budget):
    packs = pack(lengths, budget)
    assert sorted(i for indices in packs for i in indices) == list(range(len(lengths)))
    for indices in packs:
        assert indices == sorted(indices)
        assert len(indices) == 1 or sum(lengths[i] for i in indices) <= budget
    assert packs == pack(lengths, budget)


def test_packing_is_first_fit_in_the_order_given():
    assert pack([6, 5, 4, 9, 1, 20], 10) == [[0, 2], [1, 4], [3], [5]]
    assert pack([], 10) == []


@pytest.mark.parametrize(("lengths", "budget"), [([1], 0), ([-1], 4)])
def test_packing_refuses_what_makes_no_sense(lengths, budget):
    with pytest.raises(ValueError):
        pack(lengths, budget)


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

    def gradients(scores):
        model.zero_grad()
        (sum((score * (i + 1)).sum() for i, score in enumerate(scores))).backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    packed = gradients(completion_logprobs(model, sequences))
    alone = gradients([one_by_one(model, prompt, completion) for prompt, completion in sequences])
    for name in alone:
        torch.testing.assert_close(packed[name], alone[name], atol=1e-4, rtol=1e-4)


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


# ------------------------------------------------------------------------------------------------------- prompts


def test_a_prompt_follows_the_template_with_system_shots_and_prefix(tiny):
    _, tokenizer = tiny
    ids = encode_prompt(tokenizer, "and 2+2?", system="Be brief.", prefix="<think>", shots=[("1+1?", "2")])
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
        "<|im_start|>user\nand 2+2?<|im_end|>\n<|im_start|>assistant\n<think>"
    )
    special = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert ids.count(special) == 5, "the template's markers are single tokens"


def test_a_tokenizer_without_chat_template_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        encode_prompt(tokenizer, "hello")


@settings(deadline=None)
@given(st.text(max_size=60))
def test_the_tiny_tokenizer_keeps_any_text(tiny, text):
    _, tokenizer = tiny
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text.encode(errors="replace").decode()


# ------------------------------------------------------------------------------------------------------- finding


def test_the_tiny_model_is_the_same_wherever_it_is_built(tmp_path):
    state = torch.get_rng_state()
    first, second = (models.resolve("tiny", tmp_path / name) for name in "ab")
    assert torch.equal(state, torch.get_rng_state()), "building must not disturb the process's random state"
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert (first / "tokenizer.json").read_bytes() == (second / "tokenizer.json").read_bytes()


def test_concurrent_callers_build_once_and_leave_no_partial_folder(tmp_path, monkeypatch):
    name, build = models.BUILTIN["tiny"]
    builds = []

    def counted(folder: Path) -> None:
        builds.append(folder)
        build(folder)

    monkeypatch.setitem(models.BUILTIN, "tiny", (name, counted))
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: models.resolve("tiny", tmp_path), range(4)))
    assert len(folders) == len(builds) == 1
    assert {entry.name for entry in tmp_path.iterdir()} == {name, f"{name}.lock"}


def test_a_build_that_fails_leaves_nothing_that_looks_like_a_model(tmp_path, monkeypatch):
    def broken(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError("disk full")

    monkeypatch.setitem(models.BUILTIN, "tiny", ("tiny-broken", broken))
    with pytest.raises(OSError, match="disk full"):
        models.resolve("tiny", tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny-broken.lock"]


def test_a_saved_model_folder_resolves_to_itself(tmp_path):
    folder = models.resolve("tiny", tmp_path)
    assert models.resolve(str(folder)) == folder


def test_the_cache_respects_the_users_choice(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models.default_cache() == tmp_path / "safeladder" / "models"


def test_what_cannot_be_found_is_refused_with_what_was_tried(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match=r"embedded.*tiny.*no local folder.*no hub id"):
        models.resolve("smollm")
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        models.resolve(str(tmp_path))
    with pytest.raises(ModelError, match="cannot load"):
        models.load(tmp_path)
    with pytest.raises(ModelError, match="dtype 'int8'"):
        models.load(tmp_path, dtype="int8")


def test_a_hub_id_without_network_is_refused_with_what_was_tried(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=r"'nobody/nothing'.*no such local folder.*HF_HUB_OFFLINE is set"):
        models.resolve("nobody/nothing")
