"""The policy is found by name and speaks through its template."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safeladder.policies import model as models
from safeladder.policies.builtin import tiny_tokenizer
from safeladder.policies.model import ModelError, encode_prompt


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return models.load(models.resolve("tiny", tmp_path_factory.mktemp("cache")))


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
