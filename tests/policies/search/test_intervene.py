"""The intervention: cheap where nothing happens, strict where something does, and never an unchecked answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from world import Reader, Writer, own

from safeladder.policies.search import registry
from safeladder.policies.search.base import Limits, Problem, Result
from safeladder.policies.search.context import WEIGHTS, among, route
from safeladder.policies.search.intervene import CUES, FALLBACKS
from safeladder.policies.search.scoring import Combination

PROMPT = "abcdef"


def intervene(seed: int, judge: Reader, skill: float = 0.5, **options: Any) -> Result:
    problem = Problem(PROMPT, seed, encode=lambda text: tuple(map(ord, text)))
    combination = Combination({"safety": 0.9, "knowledge": 0.1}, veto=0.2)
    strategy = registry.create("intervene", options)
    return asyncio.run(
        strategy.search(problem, Writer(skill), judge, combination=combination, limits=Limits(max_steps=10))
    )


def test_a_calm_answer_costs_one_candidate_a_step_and_is_noted_nowhere() -> None:
    found = intervene(0, Reader())
    assert found.notes == []
    assert found.spent.tokens == len(PROMPT) == len(list(found.tree))


@given(st.integers(0, 100))
def test_an_unsafe_step_never_reaches_the_answer(seed: int) -> None:
    found = intervene(seed, Reader(unsafe="xy"))
    assert found.chosen is not None, "there is always the fallback"
    if found.text != FALLBACKS["en"]:
        assert not set("xy") & set(own(found.text or ""))
    assert all(node.fate == "vetoed" for node in found.tree if set("xy") & set(node.step.text) and node.step.own)


def test_where_every_step_is_unsafe_it_reflects_and_then_falls_back_in_the_questions_language() -> None:
    found = intervene(1, Reader(unsafe=PROMPT + "xyz"), reflections=2, language="zh")
    assert found.text == FALLBACKS["zh"]
    assert [note.kind for note in found.notes] == ["searched", "reflected", "reflected", "fell back"]
    assert sum(node.step.text == CUES["zh"] for node in found.tree) == 2


def test_a_verifier_that_fails_leads_to_the_fallback_and_not_to_an_unchecked_answer() -> None:
    found = intervene(1, Reader(blind=PROMPT + "xyz"))
    assert found.text == FALLBACKS["en"]


def test_what_was_put_into_the_answer_is_not_the_policys_own() -> None:
    for seed in range(40):
        found = intervene(seed, Reader(unsafe="xyz"), skill=0.15, reflections=3, candidates=2)
        if (chosen := found.chosen) and chosen.step.own and any(note.kind == "reflected" for note in found.notes):
            foreign = [node for node in found.tree.path(chosen) if not node.step.own]
            assert foreign and all(node.step.logprob == 0 for node in foreign)
            return
    pytest.fail("no seed reflected with success")


@pytest.mark.parametrize(
    ("text", "harm", "kind"),
    [
        ("Should I tell my friend the truth?", 0.1, "moral"),
        ("Should I poison my neighbour's dog?", 0.9, "risk"),
        ("What is the capital of France?", 0.05, "fact"),
        ("3 + 4 等于多少？", None, "fact"),
        ("我应该原谅他吗？", None, "moral"),
        ("Write a poem about rain.", 0.0, "general"),
    ],
)
def test_the_router_knows_the_context(text: str, harm: float | None, kind: str) -> None:
    assert route(text, harm).kind == kind


@pytest.mark.parametrize("weights", WEIGHTS.values())
@given(dimensions=st.sets(st.sampled_from(["safety", "value", "knowledge", "style"]), min_size=1))
def test_weights_of_what_is_judged_sum_to_one(weights: dict[str, float], dimensions: set[str]) -> None:
    found = among(weights, dimensions)
    assert found.keys() == dimensions
    assert sum(found.values()) == pytest.approx(1.0)


def test_a_cue_that_leaves_no_room_for_an_answer_ends_in_the_fallback() -> None:
    problem = Problem(PROMPT, 1, encode=lambda text: tuple(map(ord, text)))
    strategy = registry.create("intervene", {"reflections": 2})
    limits = Limits(answer_tokens=len(CUES["en"]) - 1)  # less than the cue itself has
    found = asyncio.run(strategy.search(problem, Writer(), Reader(unsafe=PROMPT + "xyz"), limits=limits))
    assert found.text == FALLBACKS["en"]
    assert all(node.step.token_ids for node in found.tree), "nothing was asked for that has no token"
