"""Work that ends with its client: a reply, whole or streamed, is worked at for as long as somebody is there to get it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send


class Vanished(Exception):
    """The client has gone; what was being done for it was stopped."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Any]) -> Any:
    """The result of `work`, which is cancelled when the client goes. Raises Vanished. The request's body has been read before."""
    working, gone = asyncio.create_task(work), asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Vanished
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.wait({working, gone})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def read_body(request: Request, most: int) -> bytes | None:
    """The body, None where it is larger than `most` bytes. Raises Vanished for a client that goes before its end."""
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Vanished
        body += message.get("body", b"")
        if len(body) > most:
            return None
        if not message.get("more_body", False):
            return bytes(body)


class EventStream(Response):
    """Server-sent events out of a generator, which is closed when they end or the client goes. `at_end` is called in any case.

    An event is asked for when the one before is on its way: who reads slowly is not worked ahead of.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], at_end: Callable[[bool], None]) -> None:
        """`at_end` is told whether the client had gone."""
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._at_end = events, at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = False
        try:
            await unless_gone(receive, self._send(send))
        except (Vanished, OSError):
            gone = True
        finally:
            self._at_end(gone)

    async def _send(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
