"""The official OpenAI client against a gateway of a real run: what it asks for is what it gets, or a reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from gateways import QUESTION, SEARCH, Serving

from safeladder.policies.search.registry import STRATEGIES


@pytest.fixture(scope="module")
def client(served: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.address()}/v1", api_key="none needed", max_retries=0, timeout=60) as made:
        yield made


def test_the_models_are_the_policy_and_it_with_each_strategy(client: openai.OpenAI) -> None:
    names = {model.id for model in client.models.list()}
    assert names == {"policy", *(f"policy+{strategy}" for strategy in STRATEGIES)}
    assert client.models.retrieve("policy").owned_by == "safeladder"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")


def test_a_streamed_answer_is_the_whole_one_with_the_same_seed_choice_by_choice(client: openai.OpenAI) -> None:
    asked = {"model": "policy", "messages": QUESTION, "n": 3, "seed": 5, "max_tokens": 40, "logprobs": True}
    whole = client.chat.completions.create(**asked)
    assert len({choice.message.content for choice in whole.choices}) == 3
    stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    texts, logprobs, finish, usage, pieces = ["", "", ""], [[], [], []], {}, None, 0
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            pieces += bool(choice.delta.content)
            logprobs[choice.index] += [token.logprob for token in choice.logprobs.content] if choice.logprobs else []
            finish[choice.index] = choice.finish_reason or finish.get(choice.index)
    for choice in whole.choices:
        assert texts[choice.index] == choice.message.content
        told = [token.logprob for token in choice.logprobs.content]
        assert logprobs[choice.index] == pytest.approx(told, abs=1e-4)
        assert finish[choice.index] == choice.finish_reason
    assert pieces > 3, "the answers came in more than one piece each"
    assert usage == whole.usage
    assert usage.completion_tokens == sum(map(len, logprobs))


def test_an_answer_ends_before_its_stop_string_streamed_or_not(client: openai.OpenAI) -> None:
    asked = {"model": "policy", "messages": QUESTION, "seed": 11, "max_tokens": 60}
    free = client.chat.completions.create(**asked).choices[0].message.content
    stop = next(free[place : place + 2] for place in range(20, len(free)) if free[place : place + 2].isascii())
    stopped = client.chat.completions.create(**asked, stop=[stop])
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].message.content == free[: free.index(stop)]
    assert stopped.usage.completion_tokens < 60, "the engine stopped too"
    chunks = client.chat.completions.create(**asked, stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == free[: free.index(stop)]


def test_temperature_0_and_a_seed_give_the_same_answer_again(client: openai.OpenAI) -> None:
    asked = {"model": "policy", "messages": QUESTION, "max_tokens": 12}
    cold = {client.chat.completions.create(**asked, temperature=0).choices[0].message.content for _ in range(2)}
    warm = {client.chat.completions.create(**asked, seed=seed).choices[0].message.content for seed in (1, 1, 2)}
    assert (len(cold), len(warm)) == (1, 2)


def test_earlier_turns_and_parts_of_text_reach_the_model(client: openai.OpenAI) -> None:
    def prompt_tokens(messages: list[dict[str, object]]) -> int:
        return client.chat.completions.create(model="policy", messages=messages, max_tokens=1).usage.prompt_tokens

    parts = [{"role": "user", "content": [{"type": "text", "text": part} for part in ("Count ", "to three.")]}]
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hello!"},
        *QUESTION,
    ]
    assert prompt_tokens(parts) == prompt_tokens(QUESTION) < prompt_tokens(turns)


def test_a_strategy_streams_its_steps_and_its_tree_can_be_read_by_request_id(client: openai.OpenAI) -> None:
    asked = {"model": "policy+beam", "messages": QUESTION, "max_tokens": 24, "seed": 3}
    whole = client.chat.completions.with_raw_response.create(**asked, extra_body=SEARCH)
    extra = {"safeladder": {**SEARCH["safeladder"], "steps": True}}
    stream = client.chat.completions.create(
        **asked, stream=True, extra_body=extra, extra_headers={"x-request-id": "the-beam"}
    )
    steps, text, last = [], "", None
    for chunk in stream:
        ours = (chunk.model_extra or {}).get("safeladder", {})
        steps += [ours["step"]] if "step" in ours else []
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        last = chunk
    assert text == whole.parse().choices[0].message.content, "the same search, with the same seed"
    tree = json.loads(client.get("/trees/the-beam", cast_to=str))
    assert tree["text"] == text
    assert [step["node"] for step in steps] == [node["node"] for node in tree["tree"]]
    assert all(set(step["scores"]) == {"form"} or step["fate"] == "unscored" for step in steps)
    assert any(step["scores"] for step in steps)
    assert any(node["fate"] == "pruned" and node["reason"] for node in tree["tree"])
    assert last.usage.completion_tokens == sum(node["tokens"] for node in tree["tree"])
    assert last.usage.prompt_tokens == whole.parse().usage.prompt_tokens > 0
    assert client.get(f"/trees/{whole.headers['x-request-id']}", cast_to=str)
    with pytest.raises(openai.NotFoundError):
        client.get("/trees/another", cast_to=str)


def test_works_in_the_hub_bear_the_requests_id(client: openai.OpenAI, served: Serving) -> None:
    asked = {"model": "policy", "messages": QUESTION, "max_tokens": 40}
    headers = {"x-request-id": "find-me"}
    for _ in range(2):  # a client that tries again says the same id, and is answered again
        answer = client.chat.completions.create(**asked, extra_headers=headers)
        assert answer.id == "chatcmpl-find-me"
    works = {event["id"] for event in served.of("find-me")}
    assert len({work.split("/")[1] for work in works}) == 2


def test_sixteen_streams_at_once_are_each_the_answer_to_their_own_question(client: openai.OpenAI) -> None:
    def ask(number: int, stream: bool) -> str:
        asked = {"messages": [{"role": "user", "content": f"Say {number}."}], "seed": number, "max_tokens": 33}
        if not stream:
            return client.chat.completions.create(model="policy", **asked).choices[0].message.content
        chunks = client.chat.completions.create(model="policy", **asked, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda number: ask(number, True), range(16)))
    assert together == [ask(number, False) for number in range(16)]
    assert len(set(together)) == 16


IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"model": "gpt-4"}, "there is no model"),
        ({"messages": []}, "length >= 1"),
        ({"messages": IMAGE}, "takes no images"),
        ({"messages": [{"role": "assistant", "content": "Hello."}]}, "take turns"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, "do not fit"),
        ({"max_tokens": 0}, ">= 1"),
        ({"max_tokens": 10**6}, "the most of an answer"),
        ({"n": 99}, "is the most"),
        ({"temperature": -1}, ">= 0"),
        ({"stop": [""]}, "1 to 256 characters"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools is not served"),
        ({"presence_penalty": 1.0}, "presence_penalty is not served"),
        ({"response_format": {"type": "json_object"}}, "response_format is not served"),
        ({"extra_body": {"colour": "red"}}, "unknown field `colour`"),
        ({"extra_body": SEARCH}, "for strategies"),
        ({"model": "policy+beam", "n": 2}, "a strategy decides itself"),
        ({"model": "policy+beam", "extra_body": {"safeladder": {"options": {"widht": 2}}}}, "did you mean 'width'"),
        ({"model": "policy+os:system"}, "there is no model"),
    ],
)
def test_what_cannot_be_served_is_refused_with_a_reason_in_openais_form(
    client: openai.OpenAI, wrong: dict[str, object], said: str
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**{"model": "policy", "messages": QUESTION, "max_tokens": 4, **wrong})  # type: ignore[call-overload]
    assert caught.value.status_code in (400, 404)
    assert said in caught.value.body["message"]  # type: ignore[index,call-overload]
    assert caught.value.response.headers["x-request-id"]
