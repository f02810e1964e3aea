"""What every strategy keeps, whatever it does: budgets, vetoes, seeds, and that its tree tells the truth."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from world import Reader, Writer

from safeladder.policies.search import registry
from safeladder.policies.search.base import Budget, Limits, Problem, Result
from safeladder.policies.search.batching import BatchedJudge, BatchedSampler
from safeladder.policies.search.scoring import Combination

NAMES = list(registry.STRATEGIES)
PLAIN = [name for name in NAMES if name != "intervene"]  # which has a fallback to give in any case: its own tests
PROMPT = "abcdef"
BOTH = Combination(weights={"knowledge": 0.7, "safety": 0.3}, veto=0.2)


def search(
    name: str, *, seed: int = 0, budget: Budget | None = None, judge: Reader | None = None, **options: Any
) -> Result:
    return asyncio.run(
        registry.create(name, options).search(
            Problem(PROMPT, seed),
            Writer(),
            judge or Reader(),
            combination=BOTH,
            budget=budget,
            limits=Limits(max_steps=8),
        )
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_tree_and_another_seed_another(name: str) -> None:
    assert search(name).tree.record() == search(name).tree.record()
    assert search(name).tree.record() != search(name, seed=1).tree.record()


@pytest.mark.parametrize("name", NAMES)
@given(tokens=st.integers(0, 60), calls=st.integers(0, 12), seed=st.integers(0, 50))
def test_no_budget_is_ever_exceeded(name: str, tokens: int, calls: int, seed: int) -> None:
    found = search(name, seed=seed, budget=Budget(tokens=tokens, calls=calls))
    assert found.spent.tokens <= tokens
    assert found.spent.tokens == sum(len(node.step.token_ids) for node in found.tree)
    assert found.spent.calls <= calls + 1  # a round that was begun is judged


@pytest.mark.parametrize("name", PLAIN)
@given(seed=st.integers(0, 50))
def test_what_was_vetoed_or_could_not_be_judged_is_never_part_of_the_answer(name: str, seed: int) -> None:
    found = search(name, seed=seed, judge=Reader(blind="z", unsafe="y"))
    if found.chosen is not None:
        assert found.chosen.fate == "final"
        assert "z" not in (found.text or "")
        assert "y" not in (found.text or "") or name == "best_of_n", "an unsafe step makes its whole path unsafe"
    for node in found.tree:
        assert node.fate != "vetoed" or "safety" in node.reason
        assert (node.score is None) == (node.fate == "unscored") or node.fate == "open"


@pytest.mark.parametrize("name", PLAIN)
def test_a_judge_that_always_fails_leaves_nothing_to_choose(name: str) -> None:
    found = search(name, judge=Reader(blind=PROMPT + "xyz"))
    assert found.chosen is None and found.text is None
    assert found.ended == "nothing may be chosen"


@pytest.mark.parametrize("name", NAMES)
def test_searches_beside_others_give_the_answers_that_they_give_alone_in_fewer_calls(name: str) -> None:
    def one(seed: int, sampler: Any, judge: Any) -> Any:
        return registry.create(name).search(
            Problem(PROMPT, seed), sampler, judge, combination=BOTH, limits=Limits(max_steps=8)
        )

    async def together() -> tuple[list[Result], int]:
        writer, reader = Writer(), Reader()
        sampler, judge = BatchedSampler(writer), BatchedJudge(reader)
        return await asyncio.gather(*(one(seed, sampler, judge) for seed in range(8))), writer.calls

    async def apart() -> tuple[list[Result], int]:
        writer, reader = Writer(), Reader()
        return [await one(seed, writer, reader) for seed in range(8)], writer.calls

    beside, few = asyncio.run(together())
    alone, many = asyncio.run(apart())
    assert [found.tree.record() for found in beside] == [found.tree.record() for found in alone]
    assert few * 4 <= many


@pytest.mark.parametrize("name", [name for name in PLAIN if name != "best_of_n"])
def test_step_level_search_under_a_right_judge_beats_one_plain_answer(name: str) -> None:
    def right(found: Result) -> float:
        return sum(a == b for a, b in zip(found.text or "", PROMPT, strict=False)) / len(PROMPT)

    searched = [right(search(name, seed=seed)) for seed in range(20)]
    plain = [right(search("best_of_n", seed=seed, n=1)) for seed in range(20)]
    assert sum(searched) / 20 > sum(plain) / 20 + 0.25


def test_greedy_with_one_candidate_is_plain_sampling() -> None:
    found = search("greedy", candidates=1)
    assert len(list(found.tree)) == len(PROMPT)
    assert all(node.place == (0,) * len(node.place) for node in found.tree)


def test_a_search_that_is_good_enough_ends_early() -> None:
    async def run(good_enough: float | None) -> Result:
        limits = Limits(max_steps=8, good_enough=good_enough)
        return await registry.create("mcts", {"rounds": 40}).search(
            Problem(PROMPT, 1), Writer(0.9), Reader(), combination=BOTH, limits=limits
        )

    early, late = asyncio.run(run(2.0)), asyncio.run(run(None))
    assert early.ended == "good enough"
    assert early.spent.tokens < late.spent.tokens


def test_the_majority_wins_whatever_its_score_and_weights_can_turn_it() -> None:
    answers = {"majority": set(), "weighted": set(), "best": set()}
    for choice, seen in answers.items():
        for seed in range(12):
            found = asyncio.run(
                registry.create("best_of_n", {"n": 9, "choice": choice}).search(
                    Problem("a", seed, answer_key=str.upper), Writer(0.3), Reader(), combination=BOTH
                )
            )
            texts = [found.tree.text(node) for node in found.tree.finals()]
            seen.add(found.text)
            if choice == "majority":
                assert texts.count(found.text or "") == max(map(texts.count, texts))
    assert answers["best"] == {"a"}
    assert answers["majority"] != {"a"}


@pytest.mark.parametrize("name", NAMES)
def test_a_failing_sampler_is_an_error_of_the_search_and_of_all_that_were_in_its_batch(name: str) -> None:
    class Broken:
        async def draw(self, requests: Any) -> Any:
            raise ConnectionError("the pool is gone")

    async def both() -> list[Any]:
        sampler, judge = BatchedSampler(Broken()), BatchedJudge(Reader())
        searches = (registry.create(name).search(Problem(PROMPT, seed), sampler, judge) for seed in range(2))
        return await asyncio.gather(*searches, return_exceptions=True)

    assert all(isinstance(error, ConnectionError) for error in asyncio.run(both()))


def test_misspelt_names_and_options_are_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(registry.UnknownStrategy, match="did you mean 'beam'"):
        registry.create("baem")
    with pytest.raises(registry.UnknownStrategy, match="did you mean 'width'"):
        registry.create("beam", {"widht": 3})
    with pytest.raises(registry.UnknownStrategy, match="width"):
        registry.create("beam", {"width": "wide"})
