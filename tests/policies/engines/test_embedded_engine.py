"""The embedded engine keeps the same promises as the large ones."""

from __future__ import annotations

import pytest
from checks import CHECKS, killed_it_fails_whoever_waits_and_leaves_nothing_behind
from running_engine import running_engine, small_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    place = tmp_path_factory.mktemp("tiny")
    with running_engine("transformers", small_model(place / "model"), place) as running:
        yield running


# It lives in this process: there is none of its own to kill.
IN_PROCESS = [check for check in CHECKS if check is not killed_it_fails_whoever_waits_and_leaves_nothing_behind]


@pytest.mark.parametrize("check", IN_PROCESS, ids=lambda check: check.__name__)
def test_it_keeps_the_promise(check, tiny):
    tiny.run(check(tiny.case))
