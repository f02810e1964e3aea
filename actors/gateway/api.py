"""The routes of the gateway: chat completions by the policy and by every strategy, the models, kept trees, health, the console."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from safeladder.actors.deliberation import Deliberation
from safeladder.actors.gateway import replies
from safeladder.actors.gateway.connections import EventStream, unless_gone
from safeladder.actors.gateway.desk import Asked, Desk, as_error
from safeladder.actors.gateway.guests import GuestImages
from safeladder.actors.gateway.policy_stream import News, PolicyStream
from safeladder.actors.gateway.requests import Bounds, RequestError, Wanted, model_names, read
from safeladder.actors.gateway.sessions import SessionRoutes
from safeladder.actors.gateway.text import GrowingText, cut
from safeladder.actors.interventions import Interventions
from safeladder.actors.pools import Caller
from safeladder.policies.search.registry import UnknownStrategy
from safeladder.policies.search.tree import Node
from safeladder.protocol import messages as m
from safeladder.protocol.images import ImageError
from safeladder.protocol.transport import Link, LinkError

CONSOLE: Final = Path(__file__).parent / "console.html"
CONSOLE_POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEALTH_S: Final = 2.0
ALIVE_S: Final = 10.0  # without an event, after which a stream says that it is alive


class Api:
    """Everything that the routes need. `context`: tokens that prompt and answer may have together, None where it is not known."""

    def __init__(
        self,
        desk: Desk,
        deliberation: Deliberation,
        link: Link,
        tokenizer: Any,
        prefix: str,
        bounds: Bounds,
        piece_tokens: int,
        context: int | None,
        interventions: Interventions,
        system: str | None,
        guests: GuestImages | None,
    ) -> None:
        """guests: where clients' images go; None for a policy that does not see."""
        self.desk, self._deliberation, self._link, self._tokenizer = desk, deliberation, link, tokenizer
        self._prefix, self._bounds, self._piece, self._context = prefix, bounds, piece_tokens, context
        self._guests = guests
        self._sessions = SessionRoutes(desk, interventions, bounds, system, prefix, self._fits)
        self._since = int(time.time())

    def routes(self) -> list[Route]:
        serve = self.desk.serve
        return [
            Route("/", self._console, methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
            Route("/v1/models", serve(self._models), methods=["GET"]),
            Route("/v1/models/{name}", serve(self._model), methods=["GET"]),
            Route("/v1/chat/completions", serve(self._chat, admitted=True), methods=["POST"]),
            Route("/v1/trees/{name}", serve(self._tree), methods=["GET"]),
            *self._sessions.routes(),
        ]

    # ---------------------------------------------------------------------------------------------------- small ones

    async def _console(self, request: Request) -> Response:
        page = await asyncio.to_thread(CONSOLE.read_bytes)
        headers = {"content-security-policy": CONSOLE_POLICY, "cache-control": "no-cache"}
        return Response(page, media_type="text/html", headers={**headers, "x-content-type-options": "nosniff"})

    async def _health(self, request: Request) -> Response:
        """Whether the hub answers; without a key, and without a word about the run."""
        try:
            await asyncio.wait_for(asyncio.wrap_future(self._link.query("status")), HEALTH_S)
        except (TimeoutError, LinkError):
            return JSONResponse({"status": "the hub does not answer"}, 503)
        return JSONResponse({"status": "ok"})

    async def _models(self, asked: Asked) -> Response:
        return JSONResponse({"object": "list", "data": [self._described(name) for name in model_names()]})

    async def _model(self, asked: Asked) -> Response:
        name = asked.request.path_params["name"]
        if name not in model_names():
            raise RequestError(f"there is no model {name!r}", "model", 404, "model_not_found")
        return JSONResponse(self._described(name))

    def _described(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._since, "owned_by": "safeladder"}

    async def _tree(self, asked: Asked) -> Response:
        name = asked.request.path_params["name"]
        answered = self.desk.search(asked.owner, name)
        if answered is None:
            raise RequestError(f"no search of the request {name!r} is kept here", status=404)
        return Response(msgspec.json.encode(answered.answer), media_type="application/json")

    # ---------------------------------------------------------------------------------------------------------- chat

    async def _chat(self, asked: Asked) -> Response:
        wanted = read(await self.desk.body(asked), self._bounds)
        self._fits(wanted)
        wanted = await self._shown(asked, wanted)
        reply = replies.Reply(asked.id, wanted.model)
        if wanted.question.strategy:
            return await self._by_search(asked, wanted, reply)
        return await self._by_policy(asked, wanted, reply)

    def _fits(self, wanted: Wanted) -> None:
        """Refuses what is too long for the model before any work. The template's own tokens come on top: see `_room`."""
        question = wanted.question
        texts = [question.system or "", *(turn.content for turn in question.turns), question.text]
        tokens = sum(len(self._tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)
        self._room(tokens, wanted)

    async def _shown(self, asked: Asked, wanted: Wanted) -> Wanted:
        """The request with its images where the pools find them as long as it is at work."""
        if not wanted.images:
            return wanted
        if self._guests is None:
            raise RequestError("this policy takes no images: send text alone", "messages", code="unsupported_content")
        try:
            references, release = await self._guests.hold(wanted.images)
        except ImageError as error:
            raise RequestError(f"an image cannot be shown: {error}", "messages", code="invalid_image") from None
        except OSError as error:
            raise RequestError(f"no image can be kept here now: {error.strerror}", status=503) from None
        asked.place.at_end(release)
        return replace(wanted, question=msgspec.structs.replace(wanted.question, images=references), images=[])

    def _room(self, prompt_tokens: int, wanted: Wanted) -> None:
        asked_for = wanted.question.max_new_tokens
        if self._context is not None and prompt_tokens + asked_for > self._context:
            raise RequestError(
                f"{prompt_tokens} tokens of prompt and {asked_for} of answer do not fit into the model's {self._context}",
                "messages",
                code="context_length_exceeded",
            )

    async def _by_policy(self, asked: Asked, wanted: Wanted, reply: replies.Reply) -> Response:
        """The first piece comes before the response begins, so that what fails at once has a status of its own."""
        options = self._deliberation.options
        stream = PolicyStream(
            Caller(self._link, "interactive", options.deadline_s),
            self._deliberation.asked(asked.work, wanted.question),
            options.generator,
            wanted.sampling,
            self._piece,
        )
        pieces = stream.pieces()
        if wanted.stream:
            first = await unless_gone(asked.request.receive, anext(pieces))
            self._room(len(stream.asked.token_ids or ()), wanted)
            return self._streamed(asked, wanted, self._policy_events(first, pieces, stream, wanted, reply))
        texts = [GrowingText(self._tokenizer, wanted.sampling.stop) for _ in range(wanted.sampling.samples)]
        said = [[self._prefix] for _ in texts]
        logprobs: list[list[dict[str, Any]]] = [[] for _ in texts]
        finish = ["" for _ in texts]

        async def collect() -> None:
            async for piece in pieces:
                self._room(len(stream.asked.token_ids or ()), wanted)
                for news in piece:
                    said[news.choice].append(texts[news.choice].feed(news.token_ids))
                    logprobs[news.choice] += replies.token_logprobs(news, self._tokenizer) if wanted.logprobs else []
                    finish[news.choice] = news.finish or ""

        await unless_gone(asked.request.receive, collect())
        choices = [
            replies.choice(
                index,
                "".join(parts) + texts[index].end(),
                finish[index],
                logprobs[index] if wanted.logprobs else None,
            )
            for index, parts in enumerate(said)
        ]
        usage = replies.usage(len(stream.asked.token_ids or ()), stream.tokens)
        self._finished(asked, wanted, usage)
        return JSONResponse(reply.whole(choices, usage, version=stream.version))

    async def _policy_events(
        self,
        first: list[News],
        pieces: AsyncIterator[list[News]],
        stream: PolicyStream,
        wanted: Wanted,
        reply: replies.Reply,
    ) -> AsyncGenerator[dict[str, Any]]:
        texts = [GrowingText(self._tokenizer, wanted.sampling.stop) for _ in range(wanted.sampling.samples)]
        for index in range(len(texts)):
            yield reply.chunk(index, {"role": "assistant", "content": self._prefix})
        async for piece in _chain(first, pieces):
            for news in piece:
                text = texts[news.choice].feed(news.token_ids)
                told = {"content": replies.token_logprobs(news, self._tokenizer)} if wanted.logprobs else None
                if news.finish is not None:
                    text += texts[news.choice].end()
                if text or told:
                    yield reply.chunk(news.choice, {"content": text}, logprobs=told)
                if news.finish is not None:
                    yield reply.chunk(news.choice, {}, news.finish)
        yield reply.aside(replies.usage(len(stream.asked.token_ids or ()), stream.tokens), version=stream.version)

    async def _by_search(self, asked: Asked, wanted: Wanted, reply: replies.Reply) -> Response:
        if wanted.stream:
            return self._streamed(asked, wanted, self._search_events(asked, wanted, reply))
        answered = await unless_gone(asked.request.receive, self._deliberation.answered(asked.work, wanted.question))
        self.desk.keep(asked, answered)
        answer = answered.answer
        text, finish = self._said(answer, wanted)
        usage = _spent(answer)
        self._finished(asked, wanted, usage)
        return JSONResponse(reply.whole([replies.choice(0, text, finish)], usage, **replies.searched(answer)))

    async def _search_events(
        self, asked: Asked, wanted: Wanted, reply: replies.Reply
    ) -> AsyncGenerator[dict[str, Any] | None]:
        """Each judged step as it comes, for who asked for steps; the answer when it is decided. None where nothing came for long."""
        nodes: asyncio.Queue[Node | None] = asyncio.Queue()
        searching = asyncio.create_task(
            self._deliberation.answered(asked.work, wanted.question, watch=nodes.put_nowait)
        )
        searching.add_done_callback(lambda _: nodes.put_nowait(None))
        try:
            yield reply.chunk(0, {"role": "assistant", "content": ""})
            while True:
                try:
                    node = await asyncio.wait_for(nodes.get(), ALIVE_S)
                except TimeoutError:
                    yield None
                    continue
                if node is None:
                    break
                if wanted.steps:
                    yield reply.aside(step=node.record())
            answered = searching.result()
        finally:
            searching.cancel()
            await asyncio.wait({searching})
        self.desk.keep(asked, answered)
        answer = answered.answer
        text, finish = self._said(answer, wanted)
        yield reply.chunk(0, {"content": text})
        yield reply.chunk(0, {}, finish)
        yield reply.aside(_spent(answer), request=asked.id, **replies.searched(answer))

    def _said(self, answer: m.Answer, wanted: Wanted) -> tuple[str, str]:
        """The text and why it ended. Where no answer may be given, the fallback, as filtered."""
        if answer.note is not None:
            return answer.text, "content_filter"
        text, _ = cut(answer.text, wanted.sampling.stop)
        return self._prefix + text, "stop"

    # ------------------------------------------------------------------------------------------------------- streams

    def _streamed(self, asked: Asked, wanted: Wanted, events: AsyncGenerator[dict[str, Any] | None]) -> Response:
        asked.kept = True

        def at_end(gone: bool) -> None:
            asked.place.leave()
            if gone:
                self.desk.vanished += 1
                self.desk.log.info("request.vanished", id=asked.id, seconds=round(time.monotonic() - asked.since, 3))

        return EventStream(self._encoded(asked, wanted, events), at_end)

    async def _encoded(
        self, asked: Asked, wanted: Wanted, events: AsyncGenerator[dict[str, Any] | None]
    ) -> AsyncGenerator[bytes]:
        """The last event holds the usage, which a client gets who asked for it, or for steps."""
        held: dict[str, Any] | None = None
        async with contextlib.aclosing(events):
            try:
                async for data in events:
                    if data is None:
                        yield replies.ALIVE
                    elif data.get("usage"):
                        held = data
                    else:
                        yield replies.event(data)
            except (UnknownStrategy, LinkError) as error:  # the status is sent already: the stream says it
                self.desk.failed += 1
                self.desk.log.warning("request.failed", id=asked.id, error=str(error))
                yield replies.event(as_error(error)[1])
                return
        if held is not None:
            self._finished(asked, wanted, held["usage"])
            if wanted.usage or wanted.steps:
                yield replies.event(held)
        yield replies.DONE

    def _finished(self, asked: Asked, wanted: Wanted, usage: dict[str, int]) -> None:
        self.desk.finished += 1
        seconds = round(time.monotonic() - asked.since, 3)
        self.desk.log.info(
            "request.finished", id=asked.id, owner=asked.owner, model=wanted.model, seconds=seconds, **usage
        )


async def _chain(first: list[News], rest: AsyncIterator[list[News]]) -> AsyncGenerator[list[News]]:
    yield first
    async for piece in rest:
        yield piece


def _spent(answer: m.Answer) -> dict[str, int]:
    """Every token that the search drew counts, those of rejected steps too."""
    return replies.usage(int(answer.spent.get("prompt_tokens", 0)), int(answer.spent.get("tokens", 0)))
