"""Groups in the making: what one generator hands back is what the next goes on from, and nothing else comes of it."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import DEADLINE_S, Place, Serving

from safeladder.actors import continuation
from safeladder.actors.generator import Generator
from safeladder.launch.config import Config
from safeladder.launch.sections import Policy
from safeladder.policies import model as models
from safeladder.policies.engines.base import GeneratedSequence
from safeladder.protocol import codec
from safeladder.protocol import messages as m

PROMPT = [5, 6, 7]
TOKENS = st.lists(
    st.tuples(st.integers(0, 300), st.floats(-20, 0, width=32), st.integers(2, 9)),
    max_size=8,
)


@st.composite
def made(draw: Any) -> list[GeneratedSequence]:
    """Samples as an engine leaves them when it is stopped: the last one is not finished."""
    finishes = [*draw(st.lists(st.sampled_from(["stop", "length", "abort"]), max_size=3)), "abort"]
    return [
        GeneratedSequence(*map(list, zip(*rows, strict=True)), finish)
        if (rows := draw(TOKENS))
        else GeneratedSequence(finish=finish)
        for finish in finishes
    ]


def group(samples: int, **fields: Any) -> m.Group:
    return m.Group(m.Record("r", "normal", "Why?"), m.Sampling(samples, 8, seed=3), min_version=2, **fields)


def travelled(output: Any) -> tuple[m.Group, codec.Arrays]:
    payload, arrays = codec.unpack(codec.pack(output.payload, output.arrays, id="w", route=["generator"]))
    assert isinstance(payload, m.Group)
    return payload, arrays


@given(made())
def test_what_was_made_of_a_group_comes_back_over_the_wire_token_for_token(sequences: list[GeneratedSequence]) -> None:
    fresh = group(len(sequences))
    assert not continuation.unfinished(fresh)
    back, arrays = travelled(continuation.output(fresh, PROMPT, sequences, str))
    assert continuation.unfinished(back)
    assert continuation.sequences_of(back, arrays, PROMPT) == sequences
    assert msgspec.structs.replace(back, completions=[]) == fresh


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"min_version": 3}, "a token of version 2, where 3 is the oldest"),
        ({"sampling": m.Sampling(3, 8)}, "3 samples, 2 completions, 2 lengths"),
        ({"sampling": m.Sampling(2, 3)}, "4 tokens, of 3 at most"),
        ({"completions": [m.Completion("", "abort"), m.Completion("", "error")]}, "one of its samples has failed"),
        ({"completions": [m.Completion("", "abort")]}, "2 samples, 1 completions"),
        ({"prompt": [5, 6]}, "its prompt has other tokens here"),
        ({"arrays": {"versions": np.array([2], np.int32)}}, "do not hold the 6 tokens"),
        ({"without": "versions"}, r"came without \['versions'\]"),
    ],
)
def test_what_does_not_fit_is_not_continued(change: dict[str, Any], why: str) -> None:
    sequences = [
        GeneratedSequence([1, 2], [-1.0, -2.0], [5, 5], "stop"),
        GeneratedSequence([1, 2, 3, 4], [-1.0] * 4, [2, 3, 3, 4], "abort"),
    ]
    back, arrays = travelled(continuation.output(group(2), PROMPT, sequences, str))
    change = dict(change)
    lost = change.pop("without", None)
    arrays = {name: array for name, array in arrays.items() if name != lost} | change.pop("arrays", {})
    prompt = change.pop("prompt", PROMPT)
    with pytest.raises(continuation.Misfit, match=why):
        continuation.sequences_of(msgspec.structs.replace(back, **change), arrays, prompt)


# ------------------------------------------------------------------------------------------- with a real engine and hub


def ask(place: Place, identity: str, payload: m.Group, arrays: codec.Arrays | None = None) -> Any:
    return place.client.call(codec.pack(payload, arrays or {}, id=identity, route=["mine"]), DEADLINE_S)


def answer(call: Any) -> tuple[m.Group, codec.Arrays]:
    payload, arrays = codec.unpack(call.result(DEADLINE_S))
    assert isinstance(payload, m.Group)
    return payload, arrays


def generated(serving: Serving) -> float:
    engine = getattr(serving.actor, "_engine", None)
    return engine.statistics()["generated_tokens"] if engine is not None else 0.0


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Imports and builds here what takes long the first time, and no generator's deadline has to hold it."""
    cache = tmp_path_factory.mktemp("models")
    models.load(models.resolve("tiny", cache))
    return Config(policy=Policy(model="tiny", cache=str(cache)))


LONG = m.Group(m.Record("r", "normal", "Why?"), m.Sampling(3, 150, seed=3))


def test_a_group_stopped_in_the_middle_and_continued_elsewhere_has_the_tokens_of_one_that_was_not(
    place: Place, config: Config
) -> None:
    with Serving(place, Generator, config=config) as first:
        call = ask(place, "stopped", LONG)
        place.until(lambda: generated(first) > 30)
    assert not call.done()
    assert place.counters()["handed_back"] == 1
    with Serving(place, Generator, config=config) as second:
        continued, its = answer(call)
        whole, other = answer(ask(place, "whole", LONG))
    assert "group.handed_back" in first.events
    assert "group.continued" in second.events
    assert {completion.finish for completion in continued.completions} <= {"stop", "length"}
    assert continued == whole
    for name in ("prompt_ids", "lengths", "completion_ids", "versions"):
        assert np.array_equal(its[name], other[name])
    assert np.abs(its["behaviour_logprobs"] - other["behaviour_logprobs"]).max() < 1e-4


def test_tokens_that_were_handed_over_keep_what_they_were_sampled_with(place: Place, config: Config) -> None:
    """The prefix says that it is of version 7: nothing of it is sampled again, and new tokens have their own version."""
    with Serving(place, Generator, config=config):
        whole, arrays = answer(ask(place, "whole", LONG))
        prompt = arrays["prompt_ids"].tolist()
        rows = np.split(arrays["completion_ids"], np.cumsum(arrays["lengths"])[:-1])
        begun = [GeneratedSequence(row[:5].tolist(), [-9.0] * 5, [7] * 5, "abort") for row in rows]
        partial = continuation.output(LONG, prompt, begun, str)
        back, its = answer(ask(place, "continued", partial.payload, partial.arrays))
    assert back == whole
    for name, kept, own in (("behaviour_logprobs", -9.0, None), ("versions", 7, 0)):
        for row in np.split(its[name], np.cumsum(its["lengths"])[:-1]):
            assert set(row[:5].tolist()) == {kept}
            assert kept not in row[5:].tolist()
            assert own is None or set(row[5:].tolist()) == {own}


def test_a_group_whose_tokens_are_too_old_is_sampled_anew(place: Place, config: Config) -> None:
    fresh = m.Group(LONG.record, m.Sampling(2, 12, seed=3))
    old = [GeneratedSequence([1, 2], [-9.0, -9.0], [-1, -1], "abort") for _ in range(2)]
    with Serving(place, Generator, config=config):
        whole, arrays = answer(ask(place, "whole", fresh))
        partial = continuation.output(fresh, arrays["prompt_ids"].tolist(), old, str)
        back, its = answer(ask(place, "anew", partial.payload, partial.arrays))
    assert back == whole
    assert np.array_equal(its["completion_ids"], arrays["completion_ids"])
    assert set(its["versions"].tolist()) == {0}
    assert -9.0 not in its["behaviour_logprobs"]


def test_a_generator_that_waits_for_weights_stops_at_once_and_keeps_the_partial_in_the_hub(
    place: Place, config: Config
) -> None:
    begun = [GeneratedSequence([1, 2], [-9.0, -9.0], [5, 5], "abort") for _ in range(3)]
    early = msgspec.structs.replace(LONG, min_version=5)
    partial = continuation.output(early, PROMPT, begun, str)
    with Serving(place, Generator, config=config, drain_s=1000.0):  # far beyond the join's deadline
        ask(place, "early", partial.payload, partial.arrays)
        place.until(lambda: place.counters().get("leased", 0) == 1)
    assert place.counters()["returned"] == 1
    assert place.counters().get("handed_back", 0) == 0
