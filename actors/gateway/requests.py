"""What a client may ask, in OpenAI's form, and what it means here.

Whatever would change the answer and cannot be done is refused with the reason, never passed over in silence: a tool, a penalty,
an unknown field. What changes nothing (`user`, `metadata`, `store`) is accepted.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from safeladder.policies.search import registry
from safeladder.protocol import messages as m
from safeladder.protocol.images import MAX_IMAGES, Image, ImageError
from safeladder.protocol.images import read as read_image

POLICY: Final = "policy"


class RequestError(Exception):
    """The client's mistake: `status` is the HTTP status, `param` the field that is wrong, `code` OpenAI's word for it."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


class ImageURL(Struct):
    url: str
    detail: str | None = None


class Part(Struct):
    """A part of a message's content. `type` other than "text" and "image_url" is refused later, by name."""

    type: str
    text: str | None = None
    image_url: ImageURL | None = None


class Message(Struct):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None


class StreamOptions(Struct):
    include_usage: bool = False


class Extension(Struct, frozen=True, forbid_unknown_fields=True):
    """Ours, under the key `safeladder`: how a strategy searches. `steps`: send each judged step as it comes (streaming only).

    `options` are the strategy's own. `tokens`, `calls`, `seconds` bound the search, besides the gateway's own bounds.
    """

    steps: bool = False
    options: dict[str, Any] = {}
    tokens: Annotated[int, Meta(ge=1)] | None = None
    calls: Annotated[int, Meta(ge=1)] | None = None
    seconds: Annotated[float, Meta(gt=0)] | None = None


class ChatRequest(Struct, forbid_unknown_fields=True):
    """The body of `/v1/chat/completions`."""

    model: str
    messages: Annotated[list[Message], Meta(min_length=1, max_length=1000)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1)] | None = 1
    stop: str | Annotated[list[str], Meta(max_length=4)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    logprobs: bool | None = None
    safeladder: Extension = Extension()
    # refused unless they ask for nothing
    top_logprobs: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None
    # without effect on the answer
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    parallel_tool_calls: bool | None = None


@dataclass(frozen=True, slots=True)
class Bounds:
    """answer_tokens: of an answer where the client names no number, and the most it may name. choices: the most of `n`."""

    default_tokens: int = 512
    answer_tokens: int = 4096
    choices: int = 8


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request that can be served. `question.strategy` is empty for the policy's own answer, drawn as `sampling` says.

    `images` are shown with the question: they have yet to be put where the pools find them.
    """

    model: str
    question: m.Question
    sampling: m.Sampling
    stream: bool
    usage: bool  # a last chunk with the usage
    logprobs: bool
    steps: bool
    images: list[Image]


def model_names() -> list[str]:
    return [POLICY, *(f"{POLICY}+{name}" for name in registry.STRATEGIES)]


def read(body: bytes, bounds: Bounds) -> Wanted:
    """The request in `body`. Raises RequestError, and UnknownStrategy for options that the strategy does not have."""
    try:
        asked = msgspec.json.decode(body, type=ChatRequest)
    except msgspec.ValidationError as error:
        raise RequestError(str(error), param=_place(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    if asked.model not in model_names():
        names = ", ".join(model_names())
        raise RequestError(f"there is no model {asked.model!r}; there are {names}", "model", 404, "model_not_found")
    _refuse_what_is_not_served(asked)
    sampling = _sampling(asked, bounds)
    strategy = asked.model.partition("+")[2]
    if strategy:
        _refuse_for_strategies(asked)
        registry.create(strategy, asked.safeladder.options)
    elif asked.safeladder != Extension():
        raise RequestError(f"these are for strategies, and {POLICY!r} is none", "safeladder")
    system, turns, text, images = _conversation(asked.messages)
    question = m.Question(
        text,
        system,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        seed=sampling.seed,
        strategy=strategy,
        options=asked.safeladder.options,
        tokens=asked.safeladder.tokens,
        calls=asked.safeladder.calls,
        seconds=asked.safeladder.seconds,
        turns=turns,
    )
    usage = asked.stream_options is not None and asked.stream_options.include_usage
    return Wanted(
        asked.model, question, sampling, bool(asked.stream), usage, bool(asked.logprobs), asked.safeladder.steps, images
    )


def _place(message: str) -> str | None:
    """The field that a message of msgspec names: `... - at `$.messages[0].role``, or `unknown field `x``."""
    for mark, end in ((" - at `$.", "`"), ("unknown field `", "`"), ("required field `", "`")):
        if mark in message:
            return message.partition(mark)[2].partition(end)[0]
    return None


def _refuse_what_is_not_served(asked: ChatRequest) -> None:
    wrong = {
        "top_logprobs": bool(asked.top_logprobs),
        "presence_penalty": bool(asked.presence_penalty),
        "frequency_penalty": bool(asked.frequency_penalty),
        "logit_bias": bool(asked.logit_bias),
        "tools": bool(asked.tools),
        "functions": bool(asked.functions),
        "tool_choice": asked.tool_choice not in (None, "none", "auto"),
        "response_format": (asked.response_format or {}).get("type", "text") != "text",
    }
    for name, found in wrong.items():
        if found:
            raise RequestError(f"{name} is not served here; leave it out", name, code="unsupported_parameter")
    if asked.stream_options is not None and not asked.stream:
        raise RequestError("stream_options are for stream: true", "stream_options")
    if asked.safeladder.steps and not asked.stream:
        raise RequestError("steps are sent with stream: true; else see /v1/trees/{id}", "safeladder.steps")


def _refuse_for_strategies(asked: ChatRequest) -> None:
    wrong = {"n": (asked.n or 1) > 1, "logprobs": bool(asked.logprobs), "top_p": asked.top_p not in (None, 1.0)}
    for name, found in wrong.items():
        if found:
            raise RequestError(f"{name} is served by the model {POLICY!r} alone: a strategy decides itself", name)


def _sampling(asked: ChatRequest, bounds: Bounds) -> m.Sampling:
    if asked.max_tokens is not None and asked.max_completion_tokens not in (None, asked.max_tokens):
        raise RequestError("max_tokens and max_completion_tokens differ", "max_tokens")
    tokens = asked.max_completion_tokens or asked.max_tokens or bounds.default_tokens
    if tokens > bounds.answer_tokens:
        raise RequestError(f"{tokens} tokens are more than {bounds.answer_tokens}, the most of an answer", "max_tokens")
    choices = asked.n or 1
    if choices > bounds.choices:
        raise RequestError(f"n is {choices}, {bounds.choices} is the most", "n")
    stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    if any(not 0 < len(mark) <= 256 for mark in stop):
        raise RequestError("a stop string has 1 to 256 characters", "stop")
    return m.Sampling(
        samples=choices,
        max_new_tokens=tokens,
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        stop=stop,
        seed=secrets.randbits(48) if asked.seed is None else asked.seed,
    )


def _conversation(messages: Sequence[Message]) -> tuple[str | None, list[m.Turn], str, list[Image]]:
    """System message, earlier turns, what the user says now and shows with it. Messages of one role in a row count as one."""
    said: list[tuple[str, str]] = []
    shown: list[Image] = []
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        role = "system" if message.role == "developer" else message.role
        if role in ("tool", "function"):
            raise RequestError(f"messages of role {role!r} are not served here", f"{place}.role")
        if role == "system" and any(earlier != "system" for earlier, _ in said):
            raise RequestError("the system message stands first", f"{place}.role")
        text, images = _content(message, place)
        if images and any(later.role != "user" for later in messages[number:]):
            raise RequestError(
                "images are shown with what the user says last: leave them out of earlier messages",
                f"{place}.content",
                code="unsupported_content",
            )
        shown += images
        if said and said[-1][0] == role:
            said[-1] = (role, f"{said[-1][1]}\n\n{text}")
        else:
            said.append((role, text))
    system = said.pop(0)[1] if said[0][0] == "system" else None
    roles = [role for role, _ in said]
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise RequestError(
            "after the system message user and assistant take turns, and the user has the last", "messages"
        )
    if len(shown) > MAX_IMAGES:
        raise RequestError(f"{len(shown)} images are more than {MAX_IMAGES}, the most of a question", "messages")
    turns = [m.Turn(role, text) for role, text in said[:-1]]  # type: ignore[arg-type]
    return system, turns, said[-1][1], shown


def _content(message: Message, place: str) -> tuple[str, list[Image]]:
    """The message's text, and its images, read."""
    if isinstance(message.content, str):
        return message.content, []
    if not message.content:
        raise RequestError("the message has no content", f"{place}.content")
    texts: list[str] = []
    shown: list[Image] = []
    for number, part in enumerate(message.content):
        if part.type == "text" and part.text is not None:
            texts.append(part.text)
        elif part.type == "image_url" and part.image_url is not None:
            shown.append(_image(part.image_url, f"{place}.content[{number}].image_url"))
        else:
            raise RequestError(
                f"parts of type {part.type!r} are not served here", f"{place}.content", code="unsupported_content"
            )
    return "".join(texts), shown


def _image(given: ImageURL, place: str) -> Image:
    if not given.url.startswith("data:"):
        raise RequestError(
            "an image comes as a data URL (data:image/png;base64,...): nothing is fetched from here", f"{place}.url"
        )
    if given.detail not in (None, "auto"):
        raise RequestError("the policy's own processor says how fine an image is seen: leave it out", f"{place}.detail")
    try:
        return read_image(given.url)
    except ImageError as error:
        raise RequestError(str(error), f"{place}.url", code="invalid_image") from None
