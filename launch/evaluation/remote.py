"""Answers of a model behind an OpenAI-compatible address: the client of the judges, with an answer's own deadline around all its tries.

429, 5xx and broken connections are tried again by the client; silence, and an answer that cannot be read or says nothing, here. What
is left when tries or time are used up is a failure, which is counted and never judged.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import Any

from safeladder.launch.evaluation.answering import Prompting, Task, question
from safeladder.launch.evaluation.settings import Settings
from safeladder.launch.evaluation.store import Response
from safeladder.protocol.images import ImageError, images
from safeladder.verifiers.judges.remote import Garbled, Remote, RemoteError, RemoteModel

ANSWERED = ("stop", "length")


class RemoteRespondent:
    """One client, on the loop of the evaluation."""

    real = True

    def __init__(self, settings: Settings, prompting: Prompting) -> None:
        assert settings.endpoint is not None
        self._endpoint, self._answering, self._seed = settings.endpoint, settings.answering, settings.seed
        self._prompting = prompting
        self.concurrency = self._endpoint.concurrency
        own = ("address", "model", "key_env", "timeout_s", "tries", "backoff_s", "images")
        given = {name: getattr(self._endpoint, name) for name in own}
        self._client = RemoteModel(Remote(**given, max_concurrency=self.concurrency))

    def identity(self) -> Any:
        end, drawn = self._endpoint, asdict(self._answering)
        return [end.address, end.model, end.body, drawn, asdict(self._prompting), self._seed]

    async def start(self) -> None:
        await self._client.start()

    async def stop(self) -> None:
        await self._client.stop()

    async def answer(self, task: Task) -> Response:
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._endpoint.deadline_s):
                response = await self._tried(task)
        except TimeoutError:
            response = Response(finish="error", error=f"no answer within {self._endpoint.deadline_s:g} s")
        except (RemoteError, ImageError, ValueError) as error:
            response = Response(finish="error", error=str(error))
        response.seconds = round(time.monotonic() - began, 3)
        return response

    async def _tried(self, task: Task) -> Response:
        """Raises RemoteError after the last try. A status that forbids the request is not tried again."""
        body = self._body(task)
        for left in reversed(range(self._endpoint.tries)):
            try:
                return read(await self._client.complete(body), self._prompting.prefix)
            except (Garbled, TimeoutError) as error:  # the time of one request; that of the answer cancels instead
                if not left:
                    raise RemoteError(str(error) or f"no reply within {self._endpoint.timeout_s:g} s") from error
                await asyncio.sleep(self._endpoint.backoff_s)
        raise AssertionError("tries is at least 1")

    def _body(self, task: Task) -> dict[str, Any]:
        given, drawn = self._prompting, self._answering
        messages: list[dict[str, Any]] = []
        if system := given.system_of(task.record):
            messages.append({"role": "system", "content": system})
        for user, assistant in given.turns(task.record):
            messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        messages.append({"role": "user", "content": self._content(task)})
        if given.prefix:
            messages.append({"role": "assistant", "content": given.prefix})
        body: dict[str, Any] = {"model": self._endpoint.model, "messages": messages}
        body |= {"max_tokens": drawn.max_new_tokens, "temperature": drawn.temperature, "top_p": drawn.top_p}
        body["seed"] = task.seed(self._seed) % 2**31
        if drawn.stop:
            body["stop"] = drawn.stop
        return body | self._endpoint.body

    def _content(self, task: Task) -> str | list[dict[str, Any]]:
        shown = images(task.record)
        if not shown:
            return question(task.record)
        if not self._endpoint.images:
            raise ValueError("the record has images, and the endpoint is asked without them (endpoint.images)")
        parts = [{"type": "image_url", "image_url": {"url": image.url}} for image in shown]
        return [*parts, {"type": "text", "text": question(task.record)}]


def read(reply: Any, prefix: str = "") -> Response:
    """A reply of /chat/completions. A thought that the server tells apart is put back into the text. Raises Garbled."""
    choices = reply.get("choices") if isinstance(reply, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    if not isinstance(message, dict) or not isinstance(first, dict):
        raise Garbled("the answer has no message in its first choice")
    content, thought = message.get("content"), message.get("reasoning_content") or message.get("reasoning")
    if not isinstance(content, str) or not content.strip():
        raise Garbled(f"the answer's content is {'empty' if isinstance(content, str) else type(content).__name__}")
    finish = first.get("finish_reason")
    if finish not in ANSWERED:
        raise Garbled(f"the answer ended with {str(finish)[:40]!r}, neither `stop` nor `length`")
    thought = thought if isinstance(thought, str) else None
    text = f"<think>{thought}</think>{content}" if thought else prefix + content.removeprefix(prefix)
    tokens, thinking = _usage(reply)
    return Response(text, finish=finish, tokens=tokens, thought_tokens=thinking)


def _usage(reply: dict[str, Any]) -> tuple[int | None, int | None]:
    """Tokens of the whole, and of the thought where the server counts them."""
    usage = reply.get("usage")
    details = usage.get("completion_tokens_details") if isinstance(usage, dict) else None
    found = usage.get("completion_tokens") if isinstance(usage, dict) else None
    thinking = details.get("reasoning_tokens") if isinstance(details, dict) else None
    return found if isinstance(found, int) else None, thinking if isinstance(thinking, int) else None
