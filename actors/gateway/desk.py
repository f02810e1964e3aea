"""What every route of the gateway does with a request, whatever it is about: who asks, may they, now, and how is a failure told.

A route is an `async def handler(asked: Asked) -> Response`, made a Starlette endpoint by `Desk.serve`. Errors reach the client in OpenAI's
form with a status of their own and the request's id in `x-request-id`; only its own mistakes are told in detail.
"""

from __future__ import annotations

import itertools
import re
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from safeladder.actors.deliberation import Answered
from safeladder.actors.gateway import replies
from safeladder.actors.gateway.access import Access, host_of, is_loopback
from safeladder.actors.gateway.connections import Vanished, read_body
from safeladder.actors.gateway.limits import Admission, Overloaded, Place
from safeladder.actors.gateway.requests import RequestError
from safeladder.policies.search.registry import UnknownStrategy
from safeladder.protocol.transport import CallError, LinkError

REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
REFUSED: Final = "request refused: "  # what an engine says of a request that could never be served


@dataclass
class Asked:
    """A request that may be served. `work`: what the names of its works in the hub begin with; it holds `id`, and no other has it."""

    request: Request
    id: str
    work: str
    owner: str
    place: Place
    since: float = field(default_factory=time.monotonic)
    kept: bool = False  # the response gives up the place, at its end


Handler = Callable[[Asked], Awaitable[Response]]


class Desk:
    """Keys, limits and ids; and the trees of the last searches, for those who asked."""

    def __init__(
        self, access: Access, admission: Admission, log: Any, body_bytes: int, trees: int, local: bool
    ) -> None:
        """`local`: bound to loopback, where a browser must be talking to this machine by name (DNS rebinding)."""
        self.access, self.admission, self.log = access, admission, log
        self.finished = self.refused = self.failed = self.vanished = 0
        self._body_bytes, self._most_trees, self._local = body_bytes, trees, local
        self._numbers = itertools.count()
        self._searches: OrderedDict[tuple[str, str], Answered] = OrderedDict()

    def serve(self, handler: Handler, admitted: bool = False) -> Callable[[Request], Awaitable[Response]]:
        """`handler` as an endpoint. `admitted`: it is work, and takes a place among the requests at work."""

        async def endpoint(request: Request) -> Response:
            given = request.headers.get("x-request-id", "")
            name = given if REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
            try:
                response = await self._let_in(request, name, handler, admitted)
            except Vanished:
                self.vanished += 1
                self.log.info("request.vanished", id=name)
                response = Response(status_code=499)  # to nobody
            except (RequestError, UnknownStrategy, Overloaded, LinkError) as error:
                response = self._told(error, name)
            response.headers["x-request-id"] = name
            return response

        return endpoint

    async def body(self, asked: Asked) -> bytes:
        """The request's body. Raises RequestError for one that is no JSON or too large, Vanished."""
        if asked.request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            # a form of another site can send text; it cannot send this without being asked first
            raise RequestError("send content-type: application/json", status=415)
        body = await read_body(asked.request, self._body_bytes)
        if body is None:
            raise RequestError(
                f"the body is larger than {self._body_bytes} bytes", status=413, code="request_too_large"
            )
        return body

    def keep(self, asked: Asked, answered: Answered) -> None:
        """Remembers a search for its owner, the last ones only."""
        self._searches[asked.owner, asked.id] = answered
        while len(self._searches) > self._most_trees:
            self._searches.popitem(last=False)

    def search(self, owner: str, name: str) -> Answered | None:
        """The search that an owner's request of this id has made, while it is kept."""
        return self._searches.get((owner, name))

    async def _let_in(self, request: Request, name: str, handler: Handler, admitted: bool) -> Response:
        if self._local and not is_loopback(host_of(request.headers.get("host", ""))):
            raise RequestError("this gateway is for this machine alone: ask for it as localhost", status=403)
        owner = self.access.owner(request.headers.get("authorization"))
        if owner is None:
            raise RequestError("no valid API key: send `Authorization: Bearer KEY`", status=401, code="invalid_api_key")
        place = self.admission.enter(owner) if admitted else Place(lambda: None)
        asked = Asked(request, name, f"{name}/{next(self._numbers)}", owner, place)
        try:
            return await handler(asked)
        finally:
            if not asked.kept:
                place.leave()

    def _told(self, error: RequestError | UnknownStrategy | Overloaded | LinkError, name: str) -> Response:
        status, body = as_error(error)
        if status < 500:
            self.refused += 1
        else:
            self.failed += 1
            self.log.warning("request.failed", id=name, error=str(error))
        headers = {"retry-after": str(error.retry_after_s)} if isinstance(error, Overloaded) else {}
        if status == 503:
            headers["retry-after"] = "5"
        return JSONResponse(body, status, headers)


def as_error(error: RequestError | UnknownStrategy | Overloaded | LinkError) -> tuple[int, dict[str, Any]]:
    """The status and the body that tell a client of an error."""
    told = str(error)
    if isinstance(error, RequestError):
        kind = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
        return error.status, replies.error(
            told, kind.get(error.status, "invalid_request_error"), error.param, error.code
        )
    if isinstance(error, UnknownStrategy):
        return 400, replies.error(told, "invalid_request_error", "safeladder.options")
    if isinstance(error, Overloaded):
        return 429, replies.error(told, "rate_limit_error", code="rate_limit_exceeded")
    if isinstance(error, CallError) and REFUSED in told:
        return 400, replies.error(told.partition(REFUSED)[2], "invalid_request_error")
    return 503, replies.error("the run's pools do not answer now; try again later", "service_unavailable")
