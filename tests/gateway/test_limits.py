"""Who may ask, how much, and what becomes of the work of a client that goes away: gateways of a real run, over plain HTTP."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any
from urllib.parse import urlsplit

import pytest
from gateways import KEY, QUESTION, SEARCH, Serving, until

ASKED = {"model": "policy", "messages": QUESTION, "max_tokens": 4}
AUTHORIZED = {"authorization": f"Bearer {KEY}"}


def post(
    served: Serving, pool: str, body: bytes | dict[str, Any], path: str = "/v1/chat/completions", **headers: str
) -> tuple[http.client.HTTPResponse, dict[str, Any]]:
    address = urlsplit(served.address(pool))
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("POST", path, sent, {"content-type": "application/json", **names})
    response = connection.getresponse()
    told = json.loads(response.read() or b"{}")
    connection.close()
    return response, told


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "Bearer wrong"}, {"authorization": KEY}, {"authorization": f"Basic {KEY}"}],
    ids=["none", "wrong", "no scheme", "another scheme"],
)
def test_without_a_valid_key_nothing_is_done(served: Serving, headers: dict[str, str]) -> None:
    response, told = post(served, "guarded", ASKED, x_request_id="nobodys", **headers)
    assert (response.status, told["error"]["type"]) == (401, "authentication_error")
    assert served.of("nobodys") == []


def test_a_key_opens_and_is_written_nowhere(served: Serving) -> None:
    response, told = post(served, "guarded", ASKED, **AUTHORIZED)
    assert response.status == 200 and told["usage"]["completion_tokens"] == 4
    until(lambda: any(event["event"] == "request.finished" for event in served.events("guarded")))
    finished = next(event for event in served.events("guarded") if event["event"] == "request.finished")
    assert finished["owner"] == "ada"
    for log in served.run.path.glob("logs/*"):
        assert KEY.encode() not in log.read_bytes(), log


def test_a_tree_is_shown_to_its_owner_alone(served: Serving) -> None:
    beam = {**ASKED, "model": "policy+beam", **SEARCH}
    assert post(served, "guarded", beam, x_request_id="mine", **AUTHORIZED)[0].status == 200
    address = urlsplit(served.address("guarded"))
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    statuses = []
    for headers in (AUTHORIZED, {}):
        connection.request("GET", "/v1/trees/mine", headers=headers)
        response = connection.getresponse()
        response.read()
        statuses.append(response.status)
    assert statuses == [200, 401]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"[]", {}, 400),
        (b"\xff\xfe", {}, 400),
        (b"[" * 3000, {}, 400),
        (b"{}", {}, 400),
        (b'{"model": "policy", "messages": "Hello"}', {}, 400),
        (b"x" * 5000, {}, 413),
        (json.dumps(ASKED).encode(), {"content_type": "text/plain"}, 415),
        (json.dumps(ASKED).encode(), {"host": "rebound.example"}, 403),
    ],
)
def test_malformed_and_oversized_requests_are_refused_in_openais_form(
    served: Serving, body: bytes, headers: dict[str, str], status: int
) -> None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    response, told = post(served, "guarded", body, **AUTHORIZED, **named)
    assert response.status == status
    assert set(told["error"]) == {"message", "type", "param", "code"} and told["error"]["message"]


def test_headers_without_end_are_refused(served: Serving) -> None:
    address = urlsplit(served.address("guarded"))
    with socket.create_connection((address.hostname, address.port), 60) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 100_000)
        assert raw.recv(100).startswith(b"HTTP/1.1 400")


def test_unknown_paths_and_methods_are_told_in_openais_form(served: Serving) -> None:
    assert post(served, "open", ASKED, "/v1/embeddings")[1]["error"]["message"] == "there is no /v1/embeddings"
    assert post(served, "open", ASKED, "/v1/models")[0].status == 405


class Stream:
    """A client of its own socket that can go away in the middle. Reads until the first tokens have come."""

    def __init__(self, served: Serving, pool: str, name: str, model: str = "policy", **more: Any) -> None:
        address = urlsplit(served.address(pool))
        self._connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        body = {"model": model, "messages": QUESTION, "max_tokens": 900, "stream": True}
        body |= {"seed": served.long_seed(QUESTION[0]["content"]), **more}
        headers = {"content-type": "application/json", "x-request-id": name, **AUTHORIZED}
        self._connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        self.response = self._connection.getresponse()

    def events(self, count: int) -> list[bytes]:
        return [self.response.readline() for _ in range(2 * count)][::2]

    def vanish(self) -> None:
        self.response.close()
        self._connection.close()


def test_a_client_that_vanishes_frees_its_work_and_its_place(served: Serving) -> None:
    stream = Stream(served, "guarded", "gone")
    assert len(stream.events(3)) == 3
    refused, told = post(served, "guarded", ASKED, **AUTHORIZED)
    assert (refused.status, told["error"]["type"]) == (429, "rate_limit_error")
    assert int(refused.headers["retry-after"]) >= 1
    stream.vanish()
    until(lambda: any(e["event"] == "request.vanished" and e["id"] == "gone" for e in served.events("guarded")))
    until(lambda: post(served, "guarded", ASKED, **AUTHORIZED)[0].status == 200)
    before = served.works("gone")
    assert len(before) * 16 < 320, "the rest of the answer was not made"
    for _ in range(3):  # later works go through the same generator: nothing of the vanished one comes between them
        assert post(served, "guarded", ASKED, **AUTHORIZED)[0].status == 200
    assert served.works("gone") == before


def test_a_client_that_vanishes_ends_its_search(served: Serving) -> None:
    options = {"width": 2, "candidates": 2}
    stream = Stream(served, "guarded", "lost", "policy+beam", safeladder={"steps": True, "options": options})
    assert b"step" in stream.events(3)[-1]
    stream.vanish()
    until(lambda: any(e["event"] == "request.vanished" and e["id"] == "lost" for e in served.events("guarded")))
    until(lambda: post(served, "guarded", ASKED, **AUTHORIZED)[0].status == 200)
    longer = {**ASKED, "max_tokens": 64, "seed": served.long_seed(QUESTION[0]["content"])}
    assert post(served, "guarded", longer, **AUTHORIZED)[0].status == 200  # a step that was being drawn ends before it
    before = served.works("lost")
    assert post(served, "guarded", longer, **AUTHORIZED)[0].status == 200
    assert served.works("lost") == before


def test_a_client_that_does_not_wait_for_a_whole_answer_frees_its_work(served: Serving) -> None:
    address = urlsplit(served.address("guarded"))
    body = json.dumps({**ASKED, "max_tokens": 900, "seed": served.long_seed(QUESTION[0]["content"])}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n"
    head += f"content-type: application/json\r\nx-request-id: left\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection((address.hostname, address.port), 60) as raw:
        raw.sendall(head.encode() + body)
        until(lambda: bool(served.of("left")))
    until(lambda: any(e["event"] == "request.vanished" and e["id"] == "left" for e in served.events("guarded")))
    until(lambda: post(served, "guarded", ASKED, **AUTHORIZED)[0].status == 200)
    assert len(served.works("left")) * 16 < 320


def test_health_is_told_without_a_key(served: Serving) -> None:
    address = urlsplit(served.address("guarded"))
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    connection.request("GET", "/health")
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())) == (200, {"status": "ok"})
