"""The thought is counted in tokens, however the vocabulary cuts its closing tag."""

import pytest

from safeladder.policies.model import load_tokenizer, resolve
from safeladder.policies.thought import thought_length


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(resolve("tiny", tmp_path_factory.mktemp("models")))


@pytest.mark.parametrize("thought", ["a b c", "", "我想一想", "</thin k> < /think>"])
def test_the_thought_ends_with_the_token_that_completes_its_tag(tokenizer, thought):
    ids = tokenizer(thought + "</think> The answer.", add_special_tokens=False)["input_ids"]
    length = thought_length(tokenizer, ids)
    assert "</think>" in tokenizer.decode(ids[:length])
    assert "</think>" not in tokenizer.decode(ids[: length - 1])


def test_a_thought_that_is_never_closed_is_the_whole_completion(tokenizer):
    ids = tokenizer("on and on", add_special_tokens=False)["input_ids"]
    assert thought_length(tokenizer, ids) == len(ids)
    assert thought_length(tokenizer, []) == 0


def test_tokens_of_an_environment_do_not_count(tokenizer):
    ids = tokenizer("look </think>", add_special_tokens=False)["input_ids"]
    kept = [position > 1 for position in range(len(ids))]
    assert thought_length(tokenizer, ids, kept) == thought_length(tokenizer, ids) - 2
