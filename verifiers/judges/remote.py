"""A judge's model behind an OpenAI-compatible address.

A request that meets 429, a 5xx or a broken connection is sent again, after the time that `Retry-After` names or an exponential pause, until
`tries` are used up; the guard's time limit ends it sooner. Whatever else is not an answer (another status, no JSON, no text in it) is a
RemoteError, which becomes a verdict of status error, never a score. The key comes from the environment and is neither logged nor in
any message.
"""

from __future__ import annotations

import asyncio
import email.utils
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx2
import msgspec
import structlog

from safeladder.verifiers.judges.prompt import Prompt

MAX_ANSWER_BYTES: Final = 4 * 2**20
_SAID = 200  # characters of a refusal's body that are quoted

log = structlog.get_logger()


class RemoteError(Exception):
    """The server gave no answer that can be read; the message says what it did instead."""


class Garbled(RemoteError):
    """What came with status 200 does not have the form of an answer: another try may do better."""


@dataclass(frozen=True)
class Remote:
    """`address`: up to and without `/chat/completions`, such as http://judges:8000/v1. `key_env`: the environment variable that
    holds the key. `timeout_s` is for one request. `images`: whether the model takes them.
    """

    address: str
    model: str
    key_env: str | None = None
    timeout_s: float = 30.0
    max_concurrency: int = 8
    tries: int = 4
    backoff_s: float = 0.5
    images: bool = False

    def __post_init__(self) -> None:
        if not self.address.startswith(("http://", "https://")):
            raise ValueError("remote.address must begin with http:// or https://")
        if self.tries < 1 or self.max_concurrency < 1 or self.timeout_s <= 0 or self.backoff_s < 0:
            raise ValueError(
                "remote: tries and max_concurrency are at least 1, timeout_s is above 0, backoff_s not below"
            )


class RemoteModel:
    """Used on the verifiers' loop only."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._client: httpx2.AsyncClient | None = None
        self._slots = asyncio.Semaphore(remote.max_concurrency)
        self.requests = self.retries = 0

    async def start(self) -> None:
        """Raises RemoteError where the key is not in the environment. Asks the server nothing yet."""
        self._connected()

    async def stop(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()

    async def takes_images(self) -> bool:
        return self._remote.images

    async def reply(self, prompt: Prompt, max_new_tokens: int) -> str:
        """What the model says, greedily. Raises RemoteError, TimeoutError."""
        limits = {"model": self._remote.model, "temperature": 0, "max_tokens": max_new_tokens}
        if prompt.raw:
            answer = await self._ask("completions", limits | {"prompt": prompt.messages[0].text() + prompt.begun})
            text = _found(answer, "text")
        else:
            body = limits | {"messages": _messages(prompt)}
            if prompt.options:
                body["chat_template_kwargs"] = dict(prompt.options)
            text = _found(await self._ask("chat/completions", body), "message", "content")
        if not isinstance(text, str):
            raise RemoteError(f"the answer holds {type(text).__name__} where its text should be")
        return text

    async def logprobs(self, prompt: Prompt, answers: Sequence[str], ended: bool) -> list[float]:
        raise RemoteError("the probabilities of whole labels cannot be asked of a remote judge")

    async def complete(self, body: dict[str, Any]) -> Any:
        """The JSON that /chat/completions gives for a body of the caller's own. Raises RemoteError, TimeoutError."""
        return await self._ask("chat/completions", body)

    # ------------------------------------------------------------------------------------------------------- the wire

    def _connected(self) -> httpx2.AsyncClient:
        if self._client is None:
            headers = {}
            if name := self._remote.key_env:
                if not os.environ.get(name):
                    raise RemoteError(f"the environment variable {name}, which should hold the key, is not set")
                headers["Authorization"] = f"Bearer {os.environ[name]}"
            # In the clear there is no certificate to verify, and reading the machine's store of them takes a while.
            secure = self._remote.address.startswith("https://")
            self._client = httpx2.AsyncClient(headers=headers, verify=secure, timeout=None)  # `_ask` keeps the time
        return self._client

    async def _ask(self, path: str, body: dict[str, Any]) -> Any:
        """The server's JSON. Waits for a free slot, and holds it through the pauses too: a server that is busy is to be spared."""
        async with self._slots:
            for attempt in range(1, self._remote.tries + 1):
                self.requests += 1
                try:
                    async with asyncio.timeout(self._remote.timeout_s):
                        status, headers, content = await self._post(path, body)
                except httpx2.TransportError as error:
                    # what its text holds is not ours to vouch for; its kind says enough
                    problem, wait_s = type(error).__name__, None
                else:
                    if status == 200:
                        return _decoded(content)
                    problem, wait_s = f"status {status}", _retry_after(headers.get("retry-after"))
                    if status != 429 and status < 500:
                        raise RemoteError(f"the server answered {problem}: {self._quoted(content)}")
                if attempt < self._remote.tries:
                    self.retries += 1
                    pause_s = self._remote.backoff_s * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
                    pause_s = pause_s if wait_s is None else wait_s
                    log.info("judge.retried", model=self._remote.model, problem=problem, pause_s=round(pause_s, 3))
                    await asyncio.sleep(pause_s)
        raise RemoteError(f"{problem} in each of {self._remote.tries} tries")

    async def _post(self, path: str, body: dict[str, Any]) -> tuple[int, Any, bytes]:
        url = f"{self._remote.address.rstrip('/')}/{path}"
        async with self._connected().stream("POST", url, json=body) as response:
            content = b""
            async for part in response.aiter_bytes():
                content += part
                if len(content) > MAX_ANSWER_BYTES:
                    raise RemoteError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
            return response.status_code, response.headers, content

    def _quoted(self, content: bytes) -> str:
        text = content.decode("utf-8", "replace")
        key = os.environ.get(self._remote.key_env or "")
        return (text.replace(key, "[key]") if key else text)[:_SAID]


def _messages(prompt: Prompt) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [{"role": turn.role, "content": turn.text()} for turn in prompt.messages]
    if prompt.images:
        last = next(message for message in reversed(messages) if message["role"] == "user")
        shown = [{"type": "image_url", "image_url": {"url": image.url}} for image in prompt.images]
        last["content"] = [*shown, {"type": "text", "text": last["content"]}]
    if prompt.begun:
        messages.append({"role": "assistant", "content": prompt.begun})
    return messages


def _decoded(content: bytes) -> Any:
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Garbled(f"the answer is no JSON: {error}") from None


def _found(answer: Any, *path: str) -> Any:
    """What stands at `choices[0]` under `path`; None where there is no such thing."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    value = choices[0] if isinstance(choices, list) and choices else None
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _retry_after(text: str | None) -> float | None:
    """Seconds that the server asks to wait: a number or an HTTP date; None where it names none."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
