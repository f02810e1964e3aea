"""The routes of `/v1/sessions`: a person's interventions over HTTP. What they do is `actors/interventions.py`.

| route | |
|---|---|
| `POST /v1/sessions` | a chat request for a strategy, or `{"request": ID}` of a search that is still kept |
| `GET /v1/sessions`, `GET`, `DELETE /v1/sessions/{id}` | the owner's sessions |
| `POST .../{id}/edits` | judge an edit and make it |
| `POST .../{id}/continue` | the policy goes on |
| `POST .../{id}/accept` | the answer is what was wanted |
| `GET .../{id}/export` | the chain as training data, `GET /v1/sessions/export` all accepted ones |
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from safeladder.actors.deliberation import language_of
from safeladder.actors.gateway.connections import unless_gone
from safeladder.actors.gateway.desk import Asked, Desk
from safeladder.actors.gateway.requests import POLICY, Bounds, RequestError, Wanted, read
from safeladder.actors.interventions import AtWork, Interventions, Refused
from safeladder.policies.search.edits import records
from safeladder.policies.search.edits.session import EditError, Kind, Session

EDIT_CHARACTERS: Final = 20_000
JSON_LINES: Final = "application/jsonl"


class FromSearch(Struct, forbid_unknown_fields=True):
    """`request`: the `x-request-id` of a search."""

    request: str


class EditRequest(Struct, forbid_unknown_fields=True):
    """`step`: see `edits/session.py`. `safety`: the lowest safety from now on, where it is to be higher than it is."""

    kind: Kind
    step: str | None = None
    text: Annotated[str, Meta(max_length=EDIT_CHARACTERS)] = ""
    safety: Annotated[float, Meta(ge=0, lt=1)] | None = None


class SessionRoutes:
    """`system`, `prefix`: of the policy, for exports. `fits`: refuses a question that is too long for the model."""

    def __init__(
        self,
        desk: Desk,
        interventions: Interventions,
        bounds: Bounds,
        system: str | None,
        prefix: str,
        fits: Callable[[Wanted], None],
    ) -> None:
        self._desk, self._interventions, self._bounds, self._fits = desk, interventions, bounds, fits
        self._system, self._prefix = system, prefix

    def routes(self) -> list[Route]:
        one = "/v1/sessions/{name}"
        serve = self._desk.serve
        return [
            Route("/v1/sessions", serve(self._begin, admitted=True), methods=["POST"]),
            Route("/v1/sessions", serve(self._list), methods=["GET"]),
            Route("/v1/sessions/export", serve(self._export_all), methods=["GET"]),
            Route(one, serve(self._show), methods=["GET"]),
            Route(one, serve(self._drop), methods=["DELETE"]),
            Route(f"{one}/edits", serve(self._acting(self._edit), admitted=True), methods=["POST"]),
            Route(f"{one}/continue", serve(self._acting(self._go_on), admitted=True), methods=["POST"]),
            Route(f"{one}/accept", serve(self._acting(self._accept)), methods=["POST"]),
            Route(f"{one}/export", serve(self._export), methods=["GET"]),
        ]

    # ------------------------------------------------------------------------------------------------------ begin, see

    async def _begin(self, asked: Asked) -> Response:
        body = await self._desk.body(asked)
        name = f"session-{asked.id}"
        if self._interventions.find(asked.owner, name) is not None:
            raise RequestError(f"there is a session {name!r} already", status=409)
        if (request := _named(body)) is not None:
            answered = self._desk.search(asked.owner, request)
            if answered is None:
                raise RequestError(f"no search of the request {request!r} is kept here", "request", 404)
            if answered.question.images:
                raise RequestError("a session takes text alone, and images were shown with this", "request")
            session = self._interventions.open(asked.owner, name, answered)
        else:
            wanted = read(body, self._bounds)
            if not wanted.question.strategy or wanted.stream:
                what = "a strategy, whose steps are judged" if not wanted.stream else "no stream"
                raise RequestError(
                    f"a session takes {what}: a model such as {POLICY}+beam", "stream" if wanted.stream else "model"
                )
            if wanted.images:
                raise RequestError("a session takes text alone", "messages", code="unsupported_content")
            self._fits(wanted)
            begun = self._interventions.begin(asked.owner, name, asked.work, wanted.question)
            session = await unless_gone(asked.request.receive, begun)
        self._desk.log.info("session.begun", id=session.id, owner=asked.owner, steps=len(session.steps))
        return JSONResponse(self._told(session), 201)

    async def _list(self, asked: Asked) -> Response:
        rows = [
            {"id": s.id, "state": s.state, "question": s.question.text[:200]}
            for s in self._interventions.of(asked.owner)
        ]
        return JSONResponse({"object": "list", "data": rows})

    async def _show(self, asked: Asked) -> Response:
        return JSONResponse(self._told(self._session(asked)))

    async def _drop(self, asked: Asked) -> Response:
        session = self._session(asked)
        with self._held(session):
            self._interventions.drop(session)
        return Response(status_code=204)

    # ------------------------------------------------------------------------------------------------------------- act

    def _acting(self, act: Callable[[Asked, Session], Awaitable[None]]) -> Callable[[Asked], Awaitable[Response]]:
        """A route that changes a session, which is held for it, and tells what it has become."""

        async def handler(asked: Asked) -> Response:
            session = self._session(asked)
            with self._held(session):
                try:
                    await act(asked, session)
                except EditError as error:
                    raise RequestError(str(error), error.param) from None
                except Refused as error:
                    self._desk.log.warning("edit.refused", id=session.id, scores=error.scores, reason=str(error))
                    if not error.scores:
                        raise RequestError(str(error), "text", 503, "not_judged") from None
                    raise RequestError(str(error), "text", 422, "unsafe_edit") from None
            return JSONResponse(self._told(session))

        return handler

    async def _edit(self, asked: Asked, session: Session) -> None:
        try:
            wanted = msgspec.json.decode(await self._desk.body(asked), type=EditRequest)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RequestError(str(error)) from None
        made = await unless_gone(
            asked.request.receive,
            self._interventions.edit(session, asked.work, wanted.kind, wanted.step, wanted.text, wanted.safety),
        )
        self._desk.log.info(
            "session.edited", id=session.id, kind=made.kind, step=made.step, distance=made.distance, gate=made.gate
        )

    async def _go_on(self, asked: Asked, session: Session) -> None:
        await self._desk.body(asked)
        going = self._interventions.go_on(session, asked.work)
        answered = await unless_gone(asked.request.receive, going)
        last = session.edits[-1] if session.edits else None
        self._desk.log.info(
            "session.continued",
            id=session.id,
            state=session.state,
            tokens=int(answered.answer.spent["tokens"]),
            locality=last and last.locality,
            carried=last and last.carried,
        )

    async def _accept(self, asked: Asked, session: Session) -> None:
        await self._desk.body(asked)
        self._interventions.accept(session)

    # ---------------------------------------------------------------------------------------------------------- export

    async def _export(self, asked: Asked) -> Response:
        return self._lines([self._session(asked)])

    async def _export_all(self, asked: Asked) -> Response:
        return self._lines([s for s in self._interventions.of(asked.owner) if s.accepted])

    def _lines(self, sessions: list[Session]) -> Response:
        made = [
            records.record(
                s,
                self._system if s.question.system is None else s.question.system,
                self._prefix,
                language_of(s.question.text),
            )
            for s in sessions
        ]
        return Response(records.lines(made), media_type=JSON_LINES)

    # ---------------------------------------------------------------------------------------------------------- inside

    def _session(self, asked: Asked) -> Session:
        name = asked.request.path_params["name"]
        session = self._interventions.find(asked.owner, name)
        if session is None:
            raise RequestError(f"there is no session {name!r}, or not any more", status=404)
        return session

    @contextmanager
    def _held(self, session: Session) -> Iterator[None]:
        try:
            with self._interventions.at_work(session):
                yield
        except AtWork as error:
            raise RequestError(str(error), status=409) from None

    def _told(self, session: Session) -> dict[str, Any]:
        own = [edit for edit in session.edits if not edit.recalled]
        return {
            "id": session.id,
            "object": "safeladder.session",
            "state": session.state,
            "model": f"{POLICY}+{session.question.strategy}",
            "revision": session.revision,
            "safety": session.gate,
            "expires_s": round(self._interventions.expires_s(session)),
            "prefix": self._prefix,
            "steps": [step.record() for step in session.steps],
            "replaced": [step.record() for step in session.replaced],
            "answer": session.answer,
            "note": session.note,
            "accepted": session.accepted,
            "edits": [dataclasses.asdict(edit) for edit in session.edits],
            "mean_distance": round(sum(edit.distance for edit in own) / len(own), 4) if own else None,
            "tokens": {"standing": len(session.token_ids), "drawn": session.drawn},
        }


def _named(body: bytes) -> str | None:
    """The request that a body names, None where it asks something itself."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None  # `read` says what is wrong with it
    if not isinstance(found, dict) or "request" not in found:
        return None
    try:
        return msgspec.convert(found, FromSearch).request
    except msgspec.ValidationError as error:
        raise RequestError(str(error), "request") from None
