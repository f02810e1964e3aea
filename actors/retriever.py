"""Retriever: finds documents for queries, in corpora of its own or by a service that it asks.

Inbox: calls with a `Document` of kind `retrieval.request`, whose data is the request of Search-R1's retrieval service:

    {"queries": ["...", ...], "topk": 3, "return_scores": true}

Outbox: kind `retrieval.result` with {"result": [[{"document": {"id", "title", "text"}, "score": 1.2}, ...], ...]}, one list a query, best
first. What blocks it is the index (a thread) or the service, for no longer than `tries` times `deadline_s`; a service that does not
answer fails the call, which the hub gives to another replica. It holds no state: if it dies, another answers.
"""

from __future__ import annotations

import asyncio
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from safeladder.actors.actor import Actor, Delivery, Reject
from safeladder.launch.config import ConfigError
from safeladder.launch.tasks import located
from safeladder.policies.search.retrieval.documents import CorpusError, Document, Hit, RetrievalError, read
from safeladder.protocol import messages as m

REQUEST, RESULT = "retrieval.request", "retrieval.result"
MAX_QUERIES: Final = 256
MAX_RESULTS: Final = 100
LONGEST_TEXT: Final = 20_000  # characters of a document that travel
BACKOFF_S: Final = 0.2  # before the second try; it doubles


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """Search-R1's form. `topk`: results a query. `return_scores` changes nothing here: scores are always returned."""

    queries: list[str]
    topk: int = 3
    return_scores: bool = True


class Retriever(Actor):
    """Answers from `corpus` or from the service at `url`, one of the two."""

    role = "retriever"

    @dataclass
    class Options:
        """corpus: JSON-lines files of {id, title, text}, or `embedded:corpus`. k1, b: of BM25. url: of a service; deadline_s, tries: of
        a request to it.

        max_bytes: of its answer.
        """

        corpus: list[str] = field(default_factory=list)
        k1: float = 0.9
        b: float = 0.4
        url: str | None = None
        deadline_s: float = 10.0
        tries: int = 3
        max_bytes: int = 16 * 2**20

    async def start(self) -> None:
        options = self.options
        if bool(options.corpus) == bool(options.url):
            raise ConfigError("a retriever needs `corpus` or `url` in its options, one of the two")
        if options.url:
            self._service = HttpRetriever(options.url, options.deadline_s, options.tries, options.max_bytes)
            return
        from safeladder.policies.search.retrieval.index import CorpusIndex

        try:
            documents = await asyncio.to_thread(read, [located(path) for path in options.corpus])
            self._index = await asyncio.to_thread(CorpusIndex, documents, options.k1, options.b)
        except (CorpusError, ValueError) as error:
            raise ConfigError(f"corpus: {error}") from error
        self.log.info("corpus.indexed", documents=len(self._index), files=list(options.corpus))

    async def handle(self, delivery: Delivery) -> m.Document:
        request = request_of(delivery.payload, delivery.id)
        search = self._service.search if self.options.url else self._index.search
        found = await asyncio.to_thread(search, request.queries, request.topk)
        self.worked()
        self.log.debug("documents.found", id=delivery.id, queries=len(found), hits=sum(map(len, found)))
        return m.Document(RESULT, {"result": [[packed(hit) for hit in hits] for hits in found]})


def request_of(payload: m.Payload, name: str) -> Request:
    """Raises Reject for what is no request."""
    if not isinstance(payload, m.Document) or payload.kind != REQUEST:
        raise Reject(f"the retriever takes {REQUEST}, {name!r} is another payload")
    try:
        request = msgspec.convert(payload.data, Request)
    except msgspec.ValidationError as error:
        raise Reject(f"{name!r}: {error}") from None
    if not 1 <= request.topk <= MAX_RESULTS or len(request.queries) > MAX_QUERIES:
        raise Reject(f"{name!r}: at most {MAX_QUERIES} queries, topk from 1 to {MAX_RESULTS}")
    return request


def packed(hit: Hit) -> dict[str, Any]:
    """A hit as it travels."""
    document = {"id": hit.document.id, "title": hit.document.title, "text": hit.document.text[:LONGEST_TEXT]}
    return {"document": document, "score": hit.score}


class HttpRetriever:
    """A service that speaks Search-R1's form: POST of a request, {"result": [[{"document": {...}, "score"}, ...], ...]} back.

    A document has `id` and either `title` and `text`, or Search-R1's `contents`: the title in quotes, a line's end, the text. Calls block:
    an event loop makes them on a thread.
    """

    def __init__(self, url: str, deadline_s: float, tries: int, max_bytes: int) -> None:
        """Raises ConfigError for what is no http(s) address, or limits that make no sense."""
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ConfigError(f"url: {url!r} is no http or https address")
        if deadline_s <= 0 or tries < 1:
            raise ConfigError(f"deadline_s must be above 0 and tries at least 1, not {deadline_s} and {tries}")
        self._url, self._deadline_s, self._tries, self._max_bytes = url, deadline_s, tries, max_bytes

    def search(self, queries: Sequence[str], count: int) -> list[list[Hit]]:
        """Raises RetrievalError when no try brought an answer that can be read."""
        body = msgspec.json.encode(Request(list(queries), count, True))
        why = ""
        for number in range(self._tries):
            if number:
                time.sleep(BACKOFF_S * 2 ** (number - 1))
            try:
                return answered(self._post(body), len(queries), count)
            except urllib.error.HTTPError as error:
                why = f"HTTP {error.code}"
                if error.code < 500 and error.code != 429:
                    break  # it would say the same again
            except OSError as error:  # no connection, time-out, URLError
                why = str(getattr(error, "reason", error)) or type(error).__name__
            except ValueError as error:
                why = str(error)
        raise RetrievalError(f"the retriever at {self._url} gave no answer: {why}")

    def _post(self, body: bytes) -> bytes:
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"}, method="POST")
        with urllib.request.urlopen(request, timeout=self._deadline_s) as response:
            content: bytes = response.read(self._max_bytes + 1)
        if len(content) > self._max_bytes:
            raise ValueError(f"an answer of more than {self._max_bytes} bytes")
        return content


def answered(content: bytes, queries: int, count: int) -> list[list[Hit]]:
    """Reads a service's answer. Raises ValueError for one that does not have the form."""
    result = msgspec.json.decode(content, type=dict[str, list[list[dict[str, Any]]]]).get("result")
    if result is None or len(result) != queries:
        raise ValueError(f"{queries} queries, {'no result' if result is None else f'{len(result)} results'}")
    return [[unpacked(row) for row in rows[:count]] for rows in result]


def unpacked(row: dict[str, Any]) -> Hit:
    """A hit as it came, ours or Search-R1's, with or without a score. Raises ValueError for one that has no id or no text."""
    fields = row.get("document", row)
    if not isinstance(fields, dict):
        raise ValueError("a document is no map")
    title, text = fields.get("title"), fields.get("text")
    if text is None and isinstance(fields.get("contents"), str):
        first, _, text = fields["contents"].partition("\n")
        title = title or first.strip().strip('"')
    identity, score = fields.get("id"), row.get("score", 0.0)
    if identity is None or not isinstance(text, str) or isinstance(score, bool) or not isinstance(score, int | float):
        raise ValueError("a document needs an `id`, a `text` or `contents`, and a number as its score")
    return Hit(Document(str(identity), str(title or ""), text), float(score))
