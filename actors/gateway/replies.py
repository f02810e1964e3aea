"""Replies in OpenAI's form: whole completions, chunks of a stream, errors. What is ours stands under the key `safeladder`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from safeladder.actors.gateway.policy_stream import News
from safeladder.protocol import messages as m


@dataclass(frozen=True)
class Reply:
    """One reply in the making: `id` is the request's."""

    id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, int], **ours: Any) -> dict[str, Any]:
        return {**self._head("chat.completion"), "choices": list(choices), "usage": dict(usage), **_ours(ours)}

    def chunk(
        self,
        choice: int,
        delta: Mapping[str, Any],
        finish: str | None = None,
        logprobs: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        told = {"index": choice, "delta": dict(delta), "logprobs": logprobs, "finish_reason": finish}
        return {**self._head("chat.completion.chunk"), "choices": [told]}

    def aside(self, usage: Mapping[str, int] | None = None, **ours: Any) -> dict[str, Any]:
        """A chunk without a choice: the usage, or something of ours."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage, **_ours(ours)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": f"chatcmpl-{self.id}", "object": kind, "created": self.created, "model": self.model}


def choice(
    index: int, content: str, finish: str, logprobs: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, "refusal": None}
    told = None if logprobs is None else {"content": list(logprobs), "refusal": None}
    return {"index": index, "message": message, "logprobs": told, "finish_reason": finish}


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def token_logprobs(news: News, tokenizer: Any) -> list[dict[str, Any]]:
    """Each sampled token with ln of the probability with which it was sampled. `bytes` is null for a part of a character."""
    told = []
    for token, logprob in zip(news.token_ids, news.logprobs, strict=True):
        text: str = tokenizer.decode([token], skip_special_tokens=False)
        whole = None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())
        told.append({"token": text, "logprob": logprob, "bytes": whole, "top_logprobs": []})
    return told


def searched(answer: m.Answer) -> dict[str, Any]:
    """What a search has to say besides its answer; the tree itself is at /v1/trees/{id}."""
    return {
        "strategy": answer.strategy,
        "context": answer.context,
        "ended": answer.ended,
        "note": answer.note,
        "confidence": answer.confidence,
        "sources": answer.sources,
        "notes": answer.notes,
        "spent": answer.spent,
    }


def error(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def event(data: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


DONE = b"data: [DONE]\n\n"
ALIVE = b": at work\n\n"  # a comment, for clients and proxies that give up on silence


def _ours(ours: Mapping[str, Any]) -> dict[str, Any]:
    return {"safeladder": dict(ours)} if ours else {}
