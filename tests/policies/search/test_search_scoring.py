"""The properties of the score that a search compares branches by."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeladder.policies.search.scoring import Combination, logit, squash
from safeladder.policies.search.tree import Step, Tree

shares = st.floats(0, 1)
weights = st.fixed_dictionaries({name: st.floats(0, 1) for name in ("safety", "value", "knowledge")})


@given(weights, st.fixed_dictionaries(dict.fromkeys(("safety", "value", "knowledge"), shares)), shares)
def test_the_score_rises_with_every_dimension(
    weights: dict[str, float], values: dict[str, float], other: float
) -> None:
    combination = Combination(weights=weights)
    for name in values:
        higher = {**values, name: max(values[name], other)}
        assert combination.score(higher, Step("")) >= combination.score(values, Step(""))


@given(st.lists(shares, min_size=1, max_size=6), st.sampled_from(["min", "last", "product"]))
def test_safety_is_that_of_the_least_safe_step_whatever_the_aggregation(values: list[float], kind: str) -> None:
    along = Combination(aggregation=kind).along([{"safety": value, "knowledge": value} for value in values])  # type: ignore[arg-type]
    assert along["safety"] == min(values)
    expected = {"min": min(values), "last": values[-1], "product": math.prod(values)}[kind]
    assert along["knowledge"] == pytest.approx(expected)


@given(shares)
def test_squash_undoes_logit(value: float) -> None:
    assert squash(logit(value)) == pytest.approx(value, abs=2e-4)


def test_a_harmful_prefix_is_not_vetoed_unless_the_veto_is_active() -> None:
    knowledge_only = {"knowledge": 1.0}
    values = {"safety": 0.01, "knowledge": 0.9}
    assert not Combination(weights=knowledge_only).vetoes(values)
    assert Combination(weights=knowledge_only, veto=0.3).vetoes(values)


def test_the_prior_counts_the_mean_log_probability_of_own_tokens_only() -> None:
    combination = Combination(prior=2.0)
    own, foreign = Step("ab", (1, 2), (-1.0, -2.0)), Step("ab", (1, 2), (-1.0, -2.0), own=False)
    assert combination.score({"safety": 0.5}, own) == pytest.approx(-3.0)
    assert combination.score({"safety": 0.5}, foreign) == pytest.approx(0.0)


@pytest.mark.parametrize("bad", [{"weights": {}}, {"weights": {"safety": -1.0}}, {"veto": 1.0}])
def test_a_combination_that_makes_no_sense_is_refused(bad: dict) -> None:
    with pytest.raises(ValueError):
        Combination(**bad)


def test_a_tree_gives_back_paths_texts_and_tokens() -> None:
    tree = Tree()
    first = tree.add(tree.root, Step("a", (1,)))
    second = tree.add(first, Step("b", (2, 3)))
    tree.add(tree.root, Step("c", (4,)))
    assert tree.text(second) == "ab" and tree.token_ids(second) == [1, 2, 3]
    assert [node.place for node in tree] == [(0,), (0, 0), (1,)]
    assert [row["parent"] for row in tree.record()] == [0, 1, 0]
