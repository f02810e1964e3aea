"""The retriever through a real hub, over a corpus of its own and over a real HTTP service that fails now and then."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from serving import DEADLINE_S, Place, Serving

from safeladder.actors import retriever
from safeladder.actors.retriever import REQUEST, RESULT, HttpRetriever, Retriever
from safeladder.launch.config import ConfigError
from safeladder.policies.search.retrieval.documents import Document, Hit, RetrievalError
from safeladder.protocol import codec
from safeladder.protocol import messages as m
from safeladder.protocol.transport import CallError


@dataclass
class Service:
    """A Search-R1 retrieval service. `replies`: (status, body) of the next requests, the last one for all others."""

    replies: list[tuple[int, bytes]]
    asked: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def service() -> Iterator[Service]:
    served = Service([])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            served.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status, body = served.replies.pop(0) if len(served.replies) > 1 else served.replies[0]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}/retrieve"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield served
    server.shutdown()
    thread.join(DEADLINE_S)
    server.server_close()


FOUND = json.dumps(
    {"result": [[{"document": {"id": "7", "contents": '"Paris"\nThe capital\nof France.'}, "score": 2.5}]]}
).encode()
HIT = Hit(Document("7", "Paris", "The capital\nof France."), 2.5)


def test_a_service_is_asked_in_search_r1s_form_and_its_documents_are_read(service: Service) -> None:
    service.replies = [(200, FOUND)]
    assert HttpRetriever(service.url, 5.0, 1, 10**6).search(["capital?"], 3) == [[HIT]]
    assert service.asked == [{"queries": ["capital?"], "topk": 3, "return_scores": True}]


def test_a_service_that_fails_now_and_then_is_asked_again(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retriever, "BACKOFF_S", 0.01)
    service.replies = [(503, b""), (200, b"not json"), (200, FOUND)]
    assert HttpRetriever(service.url, 5.0, 3, 10**6).search(["q"], 3) == [[HIT]]
    assert len(service.asked) == 3


@pytest.mark.parametrize(
    ("reply", "said", "asked"),
    [
        ((500, b""), "HTTP 500", 2),
        ((404, b""), "HTTP 404", 1),
        ((200, b'{"result": []}'), "1 queries, 0 results", 2),
        ((200, b'{"result": [[{"document": {"contents": "x"}}]]}'), "a document needs an `id`", 2),
        ((200, b" " * 2000), "more than 1000 bytes", 2),
    ],
)
def test_a_service_without_an_answer_is_an_error_and_never_an_empty_result(
    service: Service, monkeypatch: pytest.MonkeyPatch, reply: tuple[int, bytes], said: str, asked: int
) -> None:
    monkeypatch.setattr(retriever, "BACKOFF_S", 0.01)
    service.replies = [reply]
    with pytest.raises(RetrievalError, match=said):
        HttpRetriever(service.url, 5.0, 2, 1000).search(["q"], 3)
    assert len(service.asked) == asked


def test_a_service_that_nobody_runs_is_an_error() -> None:
    with pytest.raises(RetrievalError, match="gave no answer"):
        HttpRetriever("http://127.0.0.1:9/retrieve", 2.0, 1, 1000).search(["q"], 3)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "retrieve", "http://"])
def test_only_http_addresses_are_taken(url: str) -> None:
    with pytest.raises(ConfigError, match="no http"):
        HttpRetriever(url, 1.0, 1, 1)


# -------------------------------------------------------------------------------------------------- through the hub


def ask(place: Place, name: str, data: dict[str, Any], kind: str = REQUEST) -> m.Document:
    parcel = codec.pack(m.Document(kind, data), id=name, route=["mine"], lane="interactive")
    payload, _ = codec.unpack(place.client.call(parcel, DEADLINE_S).result(DEADLINE_S))
    assert isinstance(payload, m.Document)
    return payload


def test_a_corpus_is_searched_through_the_hub_and_what_is_no_request_is_rejected(place: Place, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    rows = [{"id": "a", "title": "Paris", "text": "The capital of France."}, {"id": "b", "title": "", "text": "Rain."}]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    with Serving(place, Retriever, credit=4, options=Retriever.Options(corpus=[str(corpus)])):
        answer = ask(place, "one", {"queries": ["capital of France", "zebra"], "topk": 1, "return_scores": True})
        assert answer.kind == RESULT
        (hit,), nothing = answer.data["result"]
        assert hit["document"] == rows[0]
        assert hit["score"] > 0
        assert nothing == []
        for number, (data, kind, said) in enumerate(
            [
                ({"queries": ["q"], "topk": 0}, REQUEST, "topk from 1"),
                ({"queries": "q"}, REQUEST, "Expected `array`"),
                ({"queries": ["q"], "k": 1}, REQUEST, "unknown field `k`"),
                ({}, "other", "takes retrieval.request"),
            ]
        ):
            with pytest.raises(CallError, match=said):
                ask(place, f"bad-{number}", data, kind)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Retriever.Options(), "`corpus` or `url`"),
        (Retriever.Options(corpus=["absent.jsonl"]), "cannot read absent.jsonl"),
        (Retriever.Options(url="http://x/", tries=0), "tries at least 1"),
    ],
)
def test_a_retriever_without_anything_to_search_does_not_start(
    place: Place, options: Retriever.Options, said: str
) -> None:
    serving = Serving(place, Retriever, options=options)
    serving._thread.start()
    serving._thread.join(DEADLINE_S)
    assert isinstance(serving.error, ConfigError)
    assert said in str(serving.error)
