"""Pictures that a client shows, by data URL, to a policy that sees: a tiny twin of Qwen2.5-VL with random weights."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from gateways import Serving, serving, until

from safeladder.launch.pictures import draw


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("seeing"), model="tiny-qwen-vl", pools=("open",)) as up:
        yield up


@pytest.fixture(scope="module")
def client(seeing: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{seeing.address()}/v1", api_key="none needed", max_retries=0, timeout=60) as made:
        yield made


def picture(text: str) -> str:
    return f"data:image/png;base64,{base64.b64encode(draw(text, items=1, width=60, size=8)).decode()}"


def says(text: str, *urls: str, **more: Any) -> dict[str, Any]:
    shown = [{"type": "image_url", "image_url": {"url": url, **more}} for url in urls]
    return {"role": "user", "content": [*shown, {"type": "text", "text": text}]}


def answer(client: openai.OpenAI, *messages: Any, model: str = "policy", **asked: Any) -> Any:
    return client.chat.completions.create(model=model, messages=messages, seed=3, max_tokens=24, **asked)


def kept(seeing: Serving) -> list[Any]:
    return [path for path in seeing.run.guests.rglob("*") if path.is_file()]


def test_the_policy_sees_what_a_client_shows_and_nothing_of_it_stays(seeing: Serving, client: openai.OpenAI) -> None:
    one, two = picture("one"), picture("two")
    first = answer(client, says("What is this?", one))
    again = answer(client, says("What is this?", one))
    other = answer(client, says("What is this?", two))
    blind = answer(client, {"role": "user", "content": "What is this?"})
    assert first.choices == again.choices
    assert first.choices[0].message.content != other.choices[0].message.content
    assert first.usage.prompt_tokens > blind.usage.prompt_tokens, "a picture has tokens"
    until(lambda: not kept(seeing))


def test_a_stream_and_a_search_show_it_to_every_piece_and_branch(seeing: Serving, client: openai.OpenAI) -> None:
    asked = says("What do they say?", picture("one"), picture("two"))
    chunks = answer(client, asked, stream=True)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed == answer(client, asked).choices[0].message.content
    options = {"safeladder": {"options": {"width": 2, "candidates": 2}}}
    searched = answer(client, asked, model="policy+beam", extra_body=options)
    assert searched.choices[0].message.content
    until(lambda: not kept(seeing))


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([says("What?", "https://example.org/a.png")], "nothing is fetched"),
        ([says("What?", "data:image/png;base64,AAAA")], "no image of the kinds"),
        ([says("What?", "data:image/png;base64,###")], "not base64"),
        ([says("What?", picture("one"), detail="high")], "leave it out"),
        ([says("What?", *[picture("one")] * 17)], "the most of a question"),
        (
            [says("What?", picture("one")), {"role": "assistant", "content": "A word."}, says("Which?")],
            "leave them out of earlier messages",
        ),
    ],
)
def test_an_image_that_cannot_be_shown_is_refused_with_the_reason(
    seeing: Serving, client: openai.OpenAI, messages: list[Any], said: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        answer(client, *messages)
    assert said in caught.value.body["message"]  # type: ignore[index,call-overload]
    assert not kept(seeing)


def test_a_session_takes_text_alone(client: openai.OpenAI) -> None:
    body = {"model": "policy+beam", "messages": [says("What?", picture("one"))]}
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/sessions", body=body, cast_to=object)
    assert "text alone" in caught.value.body["message"]  # type: ignore[index,call-overload]
