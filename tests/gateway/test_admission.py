"""Who is let in and how many: the counters and the keys, without a server."""

from __future__ import annotations

from pathlib import Path

import pytest
from gateways import KEY
from hypothesis import given
from hypothesis import strategies as st

from safeladder.actors.gateway import access
from safeladder.actors.gateway.actor import GatewayOptions, Server
from safeladder.actors.gateway.limits import Admission, Overloaded
from safeladder.launch.config import Config, ConfigError


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_beyond_the_most_at_work_a_request_is_refused_until_one_leaves() -> None:
    admission = Admission(2, None)
    places = [admission.enter("ada") for _ in range(2)]
    with pytest.raises(Overloaded) as caught:
        admission.enter("bob")
    assert caught.value.retry_after_s >= 1
    places[0].leave()
    places[0].leave()  # twice is once
    assert admission.working == 1
    admission.enter("bob")
    assert admission.working == 2


@given(st.lists(st.floats(0, 30), max_size=60))
def test_no_owner_gets_more_than_the_rate_and_one_burst(waits: list[float]) -> None:
    clock = Clock()
    admission = Admission(1000, 6, clock)
    let_in = 0
    for wait in waits:
        clock.now += wait
        try:
            admission.enter("ada")
        except Overloaded as refused:
            assert 1 <= refused.retry_after_s <= 10
        else:
            let_in += 1
        assert let_in <= 6 + clock.now * 6 / 60


def test_after_the_time_that_it_was_told_a_client_is_let_in_and_others_never_waited() -> None:
    clock = Clock()
    admission = Admission(1000, 6, clock)
    for _ in range(6):
        admission.enter("ada")
    with pytest.raises(Overloaded) as caught:
        admission.enter("ada")
    admission.enter("bob")
    clock.now += caught.value.retry_after_s
    admission.enter("ada")


def test_keys_are_read_with_their_owners_and_short_ones_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n\nada {KEY}\n{KEY}-of-nobody\n")
    monkeypatch.setenv(access.ENVIRONMENT, f"{KEY}-env")
    keys = access.load(str(file))
    assert keys.owner(f"Bearer {KEY}") == "ada"
    assert keys.owner(f"bearer {KEY}-of-nobody") == "key-2"
    assert keys.owner(f"Bearer {KEY}-env") == "environment-1"
    assert [keys.owner(wrong) for wrong in (None, "", "Bearer", f"Basic {KEY}", f"Bearer {KEY}x")] == [None] * 5
    for wrong in ("ada short\n", "# nothing\n", "a b c\n"):
        file.write_text(wrong)
        with pytest.raises(ConfigError):
            access.load(str(file))
    with pytest.raises(ConfigError, match="cannot be read"):
        access.load(str(tmp_path / "missing"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_beyond_loopback_nothing_is_bound_without_keys(host: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="API keys"):
        Server(GatewayOptions(host=host, port=0), Config(), None, tmp_path, None, tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("header", "local"),
    [
        ("localhost:80", True),
        ("127.0.0.1", True),
        ("[::1]:8000", True),
        ("evil.example:80", False),
        ("127.0.0.1.evil.example", False),
    ],
)
def test_a_browser_that_was_sent_here_under_another_name_is_known_by_it(header: str, local: bool) -> None:
    assert access.is_loopback(access.host_of(header)) is local
