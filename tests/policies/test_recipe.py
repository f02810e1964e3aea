import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeladder.policies.recipe import RecipeError, from_mapping, normalised_apart, rewards
from safeladder.protocol.messages import Completion, Group, Record, Sampling, Verdict

RECIPE = from_mapping(
    {
        "families": {
            "safety": {
                "route": ["generator", "rules", "safety", "learner"],
                "terms": {"safety": 1, "format": 0.5, "length": {"weight": 0.25, "optional": True}},
                "costs": {"refusal": {"verifier": "safety", "label": "Unnecessary refusal"}},
            }
        }
    }
)


def verdict(sample, verifier, score=None, status="ok", label=None, principle="rules", **more):
    return Verdict(
        sample=sample,
        verifier=verifier,
        version="1",
        principle=principle,
        status=status,
        score=score,
        label=label,
        **more,
    )


def safety(sample, score, label, **more):
    return verdict(sample, "safety", score, label=label, principle="safety", **more)


def group(verdicts, count=2, label="safety", finishes=None):
    completions = [Completion(text="", finish=finish) for finish in finishes or ["stop"] * count]
    record = Record(id="r1", label=label, prompt="?")
    return Group(record=record, sampling=Sampling(), completions=completions, verdicts=verdicts)


def test_the_reward_is_the_weighted_sum_of_the_terms():
    found = rewards(
        group(
            [
                *(safety(0, 1.0, "Safe without risk"), verdict(0, "format", 1.0), verdict(0, "length", -1.0, low=-1.0)),
                *(safety(1, 0.0, "Unsafe"), verdict(1, "format", 0.0), verdict(1, "length", status="abstain")),
            ]
        ),
        RECIPE,
    )
    assert found.total.tolist() == [1.25, 0.0]
    assert found.valid.tolist() == [True, True]
    assert found.unsafe.tolist() == [0.0, 1.0]
    assert found.costs["refusal"].tolist() == [0.0, 0.0]
    np.testing.assert_array_equal(found.channels["length"], [-1.0, np.nan])


@pytest.mark.parametrize("status", ["abstain", "timeout", "error", "missing", "out of range", "nan"])
def test_a_failed_verifier_never_becomes_a_reward(status):
    whole = [safety(k, 1.0, "Safe without risk") for k in (0, 1)] + [verdict(k, "length", 0.0) for k in (0, 1)]
    broken = {
        "missing": [],
        "out of range": [verdict(1, "format", 7.0)],
        "nan": [verdict(1, "format", float("nan"))],
    }.get(status, [verdict(1, "format", status=status)])
    found = rewards(group([*whole, verdict(0, "format", 1.0), *broken]), RECIPE)
    assert found.valid.tolist() == [True, False]
    assert np.isnan(found.total[1])
    assert found.total[0] == 1.5
    assert list(found.problems) == [1]
    assert found.problems[1].startswith("format")


@pytest.mark.parametrize("status", ["timeout", "error", "missing"])
def test_optional_forgives_an_abstention_and_nothing_else(status):
    whole = [safety(0, 1.0, "Safe without risk"), verdict(0, "format", 1.0)]
    broken = [] if status == "missing" else [verdict(0, "length", status=status)]
    assert not rewards(group([*whole, *broken], count=1), RECIPE).valid[0]
    assert rewards(group([*whole, verdict(0, "length", status="abstain")], count=1), RECIPE).valid[0]


def test_several_verdicts_of_one_verifier_are_averaged_and_one_unsafe_is_enough():
    found = rewards(
        group(
            [
                safety(0, 1.0, "Safe without risk", target="answer"),
                safety(0, 0.0, "Unsafe", target="thought"),
                verdict(0, "format", 1.0),
                verdict(0, "length", 0.0),
            ],
            count=1,
        ),
        RECIPE,
    )
    assert found.total.tolist() == [1.0]
    assert found.unsafe.tolist() == [1.0]


def test_qualified_are_valid_samples_that_reach_every_threshold_and_are_safe():
    recipe = from_mapping(
        {
            "families": {
                "safety": {
                    "route": ["generator", "learner"],
                    "terms": {
                        "format": {"weight": 1, "qualifies": 1.0},
                        "match": {"weight": 1, "optional": True, "qualifies": 0.5},
                        "safety": 1,
                    },
                }
            }
        }
    )
    verdicts = [
        *(verdict(k, "format", score) for k, score in enumerate([1.0, 1.0, 0.0, 1.0, 1.0, 1.0])),
        *(verdict(k, "match", score) for k, score in ((0, 1.0), (1, 0.25), (2, 1.0), (3, 1.0), (4, 1.0))),
        verdict(5, "match", status="abstain"),
        *(safety(k, 1.0, "Safe without risk") for k in (0, 1, 2, 5)),
        safety(3, 0.0, "Unsafe", target="thought"),
    ]
    found = rewards(group(verdicts, count=6), recipe)
    #                 qualified, wrong, malformed, unsafe thought, no safety verdict, abstention of an optional term
    assert found.qualified.tolist() == [True, False, False, False, False, True]
    assert found.terms["match"].tolist()[:2] == [1.0, 0.25]


def test_nothing_is_qualified_where_no_threshold_is_declared():
    verdicts = [safety(0, 1.0, "Safe without risk"), verdict(0, "format", 1.0), verdict(0, "length", 0.0)]
    assert not rewards(group(verdicts, count=1), RECIPE).qualified.any()


def test_a_sample_whose_generation_failed_is_invalid():
    verdicts = [v for k in (0, 1) for v in (safety(k, 1.0, "x"), verdict(k, "format", 1.0), verdict(k, "length", 0.0))]
    found = rewards(group(verdicts, finishes=["stop", "error"]), RECIPE)
    assert found.valid.tolist() == [True, False]


def test_without_a_usable_safety_verdict_unsafe_is_unknown():
    assert np.isnan(rewards(group([], count=1), RECIPE).unsafe[0])


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["safety", "format", "length"]), st.floats(0, 1)), max_size=15
    ),
    seed=st.integers(0, 99),
)
def test_the_order_of_verdicts_and_samples_leaves_no_trace(scores, seed):
    verdicts = [verdict(*entry, principle="safety" if entry[1] == "safety" else "rules") for entry in scores]
    shuffled = random.Random(seed).sample(verdicts, len(verdicts))
    first, second = rewards(group(verdicts, count=3), RECIPE), rewards(group(shuffled, count=3), RECIPE)
    np.testing.assert_array_equal(first.total, second.total)
    np.testing.assert_array_equal(first.valid, second.valid)
    np.testing.assert_array_equal(first.unsafe, second.unsafe)

    order = random.Random(seed).sample(range(3), 3)  # sample k moves to place order[k]
    moved = [
        verdict(order[k], name, score, principle=v.principle)
        for (k, name, score), v in zip(scores, verdicts, strict=True)
    ]
    third = rewards(group(moved, count=3), RECIPE)
    np.testing.assert_array_equal(first.total, third.total[order])
    np.testing.assert_array_equal(first.valid, third.valid[order])


def test_an_unknown_label_is_refused_with_the_known_ones():
    with pytest.raises(RecipeError, match=r"no family 'safty'.*did you mean 'safety'"):
        rewards(group([], label="safty"), RECIPE)


def test_a_verdict_on_a_sample_that_is_not_there_is_refused():
    with pytest.raises(RecipeError, match="judged sample 5"):
        rewards(group([verdict(5, "format", 1.0)]), RECIPE)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ({"route": ["a"], "terms": {"x": "much"}}, r"recipe\.families\.f\.terms\.x needs a finite number"),
        ({"route": ["a"], "terms": {"x": True}}, "finite number"),
        ({"route": ["a"], "terms": {"x": float("nan")}}, "finite number"),
        ({"route": ["a"], "terms": {"x": {"wieght": 1}}}, r"terms\.x\.wieght is unknown.*did you mean 'weight'"),
        ({"route": ["a"], "terms": {"x": {"weight": 1, "optional": "yes"}}}, "true or false"),
        ({"route": ["a"], "terms": {}}, "at least one term"),
        ({"route": ["a"], "terms": {"x": 1}, "costs": {"c": {"verifier": "x"}}}, "a verifier and a label"),
        ("generator", "must be a map"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused_by_key(family, message):
    with pytest.raises(RecipeError, match=message):
        from_mapping({"families": {"f": family}})


def test_terms_marked_apart_are_channels_of_their_own_and_all_others_are_one():
    def family(**apart):
        terms = {
            "safety": {"weight": 1, "apart": apart.get("safety", False)},
            "format": 0.5,
            "length": {"weight": -0.25, "optional": True},
        }
        return from_mapping({"families": {"safety": {"route": ["learner"], "terms": terms}}}).family("safety")

    nan = np.nan
    terms = {"safety": np.array([1.0, 0, 1]), "format": np.array([0.5, 0, nan]), "length": np.array([0.25, nan, nan])}
    channels, weights = normalised_apart(terms, family())
    assert (channels, weights) == (terms, {"safety": 1, "format": 0.5, "length": -0.25})
    channels, weights = normalised_apart(terms, family(safety=True))
    assert weights == {"safety": 1, "rest": 0.75}
    np.testing.assert_array_equal(channels["safety"], terms["safety"])
    np.testing.assert_array_equal(channels["rest"], [0.75, 0, nan])
