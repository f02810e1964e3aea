"""Gateway: HTTP in, calls to the pools out.

Inbox: none in the hub; requests come over HTTP. Each is answered from calls in the interactive lane; what blocks it is the pools'
capacity, for no longer than a call's deadline and, for a search, its budget. If a generator or verifier dies, the hub gives the call to
another. If the hub restarts, the link joins it again and calls that were lost end in an error (503). If this process dies, its clients
see a broken connection and nothing of their work is left but calls that nobody waits for.

`Server` is the whole of it without the actor, for `safeladder serve` beside a live run.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from safeladder.actors.actor import Actor, ActorError, Delivery, Reject
from safeladder.actors.deliberation import Deliberation, DeliberationOptions, tokenizer_of
from safeladder.actors.gateway import access, replies
from safeladder.actors.gateway.api import Api
from safeladder.actors.gateway.desk import Desk
from safeladder.actors.gateway.guests import GuestImages
from safeladder.actors.gateway.limits import Admission
from safeladder.actors.gateway.requests import Bounds
from safeladder.actors.interventions import Interventions
from safeladder.launch.config import Config, ConfigError
from safeladder.launch.rundir import RunDirectory
from safeladder.policies.finding import resolve
from safeladder.protocol.transport import Link

LEAVING_S: Final = 5  # for replies on their way when the process is told to stop
HEADER_BYTES: Final = 16_384


@dataclass
class GatewayOptions(DeliberationOptions):
    """host, port: where to listen, 0: any free port; beyond loopback only with keys. keys_file: see `access.load`.

    concurrent_requests: at work at once. requests_per_minute: of one key; null: no limit. body_bytes: of a request.
    default_tokens, answer_tokens: of an answer where the client names no number, and the most it may name. choices: the most of `n`.
    piece_tokens: sampled in one call before they are streamed. trees: searches that stay readable. sessions: of one owner, whose least
    recently used goes first; session_idle_s: unused, after which one is gone.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys_file: str | None = None
    concurrent_requests: int = 64
    requests_per_minute: int | None = None
    body_bytes: int = 1_048_576
    default_tokens: int = 512
    answer_tokens: int = 4096
    choices: int = 8
    piece_tokens: int = 16
    trees: int = 256
    sessions: int = 64
    session_idle_s: float = 3600.0


class Server:
    """An HTTP server over a link to a run. Binds when it is made, so that its address is known."""

    def __init__(
        self, options: GatewayOptions, config: Config, link: Link, folder: Path, log: Any, guests: Path
    ) -> None:
        """`folder`: of the policy's model; `guests`: this gateway's own, for images.

        Raises ConfigError for an address that may not or cannot be bound, and for a model without tokenizer.json.
        """
        keys, local = access.load(options.keys_file), access.is_loopback(options.host)
        if keys.open and not local:
            raise ConfigError(
                f"host {options.host} can be reached from outside: give API keys (keys_file, or {access.ENVIRONMENT}), or bind to 127.0.0.1"
            )
        tokenizer = tokenizer_of(folder)
        if tokenizer is None:
            raise ConfigError(f"the gateway needs the policy's tokenizer.json, which {folder} does not have")
        self.desk = Desk(
            keys,
            Admission(options.concurrent_requests, options.requests_per_minute),
            log,
            options.body_bytes,
            options.trees,
            local,
        )
        deliberation = Deliberation(options, config, link, tokenizer)
        self._api = Api(
            self.desk,
            deliberation,
            link,
            tokenizer,
            config.policy.prefix,
            Bounds(options.default_tokens, options.answer_tokens, options.choices),
            options.piece_tokens,
            context_of(folder),
            Interventions(deliberation, link, tokenizer, options.sessions, options.session_idle_s),
            config.policy.system,
            GuestImages(guests) if "vision_config" in _settings(folder) else None,
        )
        self._socket = _bind(options.host, options.port)
        host, port = self._socket.getsockname()[:2]
        self.address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def serve(self, stopping: asyncio.Event) -> None:
        """Serves until `stopping` is set; replies on their way have `LEAVING_S`. Raises ActorError if the server ends by itself."""
        app = Starlette(
            routes=self._api.routes(),
            exception_handlers={HTTPException: _not_found, Exception: self._defect},
        )
        server = _Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                http="h11",
                ws="none",
                h11_max_incomplete_event_size=HEADER_BYTES,
                timeout_graceful_shutdown=LEAVING_S,
            )
        )
        serving = asyncio.create_task(server.serve(sockets=[self._socket]))
        stop = asyncio.create_task(stopping.wait())
        await asyncio.wait({serving, stop}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done() and not stop.done():
            stop.cancel()
            raise ActorError(f"the HTTP server ended by itself: {serving.exception() or 'no reason given'}")
        server.should_exit = True
        await serving

    def metrics(self) -> dict[str, float]:
        desk = self.desk
        counts = {"finished": desk.finished, "refused": desk.refused, "failed": desk.failed, "vanished": desk.vanished}
        return {"working": float(desk.admission.working), **{name: float(count) for name, count in counts.items()}}

    async def _defect(self, request: Request, error: Exception) -> Response:
        """A defect of ours: it is in the log, the client learns nothing of it."""
        self.desk.failed += 1
        self.desk.log.error("request.broke", path=request.url.path, exc_info=error)
        return JSONResponse(replies.error("internal error", "internal_error"), 500)


class Gateway(Actor):
    """Serves until the process stops."""

    role = "gateway"

    @dataclass
    class Options(GatewayOptions):
        pass

    async def start(self) -> None:
        folder = await asyncio.to_thread(
            resolve, self.config.policy.model, Path(self.config.policy.cache) if self.config.policy.cache else None
        )
        guests = RunDirectory(self.context.directory).guests / self.context.name.replace("/", "-")
        self._server = await asyncio.to_thread(Server, self.options, self.config, self.link, folder, self.log, guests)
        self.log.info("gateway.listening", address=self._server.address, keys=not self._server.desk.access.open)

    async def run(self) -> None:
        counting = asyncio.create_task(self._count())
        try:
            await self._server.serve(self.stopping)
        finally:
            counting.cancel()

    def handle(self, delivery: Delivery) -> None:
        raise Reject("the gateway takes no works, only requests over HTTP")

    async def _count(self) -> None:
        while True:
            self.metrics = self._server.metrics()
            await asyncio.sleep(1.0)


class _Server(uvicorn.Server):
    """uvicorn without signal handlers of its own: the process has its own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = {404: f"there is no {request.url.path}", 405: f"{request.method} is not for {request.url.path}"}
    body = replies.error(told.get(error.status_code, error.detail), "invalid_request_error")
    return JSONResponse(body, error.status_code, error.headers)


def context_of(folder: Path) -> int | None:
    """Tokens of prompt and answer together that the model was made for; None where its config.json does not say."""
    settings = _settings(folder)
    value = settings.get("max_position_embeddings", settings.get("text_config", {}).get("max_position_embeddings"))
    return value if isinstance(value, int) else None


def _settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return found


def _bind(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family[0], socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(family[4])
        bound.listen()  # who is told the address may connect at once, and waits until the server is up
    except OSError as error:
        raise ConfigError(f"the gateway cannot listen at {host}:{port}: {error.strerror or error}") from None
    return bound
