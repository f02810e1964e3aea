"""Exact match and F1 give the numbers that others give, in English and Chinese."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeladder.protocol.messages import Record, Verdict
from safeladder.verifiers.contract import Item, run
from safeladder.verifiers.registry import create
from safeladder.verifiers.rules.match import exact_match, f1, normalise, says

# Made with transformers' squad_metrics and verl 0.9.1's search_r1_like_qa_em: gold, answer, exact, f1, "substring" exact match.
VECTORS = [
    ("the Eiffel Tower", "Eiffel tower.", 1, 1.0, 1),
    ("Denver Broncos", "the Denver Broncos team", 0, 0.8, 1),
    ("1889", "in 1889", 0, 0.6666666666666666, 1),
    ("Marie Curie", "Curie", 0, 0.6666666666666666, 0),
    ("", "", 1, 1.0, 1),
]

# Worked out by hand from CMRC 2018's definition: 2 * longest common run / (tokens + tokens), tokens being characters and foreign words.
CHINESE = [
    ("北京", "北京", 1, 1.0),
    ("北京", "答案是北京。", 0, 4 / 7),
    ("《红楼梦》", "红楼梦", 1, 1.0),
    ("1949年10月1日", "１９４９年１０月１日", 1, 1.0),
    ("曹雪芹", "曹操与雪芹", 0, 0.5),  # 雪芹 is the longest run: 2 * 2 / 8
    ("TCP协议", "使用 TCP 协议", 0, 6 / 8),
    ("南京", "北平", 0, 0.0),
    ("南京", "", 0, 0.0),
]


@pytest.mark.parametrize(("gold", "answer", "exact", "overlap", "within"), VECTORS)
def test_english_scores_are_those_of_squad(gold: str, answer: str, exact: int, overlap: float, within: int) -> None:
    assert exact_match(answer, gold) == exact
    assert f1(answer, gold) == pytest.approx(overlap, abs=1e-12)
    assert says(normalise(answer), normalise(gold)) == within


@pytest.mark.parametrize(("gold", "answer", "exact", "overlap"), CHINESE)
def test_chinese_scores_are_those_of_cmrc(gold: str, answer: str, exact: int, overlap: float) -> None:
    assert exact_match(answer, gold) == exact
    assert f1(answer, gold) == pytest.approx(overlap, abs=1e-12)


@pytest.mark.parametrize(("one", "other"), [("3.5", "35"), ("-3", "3"), ("1.5%", "15%")])
def test_punctuation_within_a_number_is_part_of_it(one: str, other: str) -> None:
    assert not exact_match(one, other)
    assert f1(one, other) == 0


@pytest.mark.parametrize(
    ("one", "other"), [("U.S.", "US"), ("1,000", "1000"), ("state-of-the-art", "State of the Art"), ("It’s", "its")]
)
def test_punctuation_elsewhere_is_not(one: str, other: str) -> None:
    assert exact_match(one, other) == (
        one != "state-of-the-art"
    )  # SQuAD takes the hyphens out, and makes one word of it


sayings = st.lists(
    st.sampled_from(["the", "Red", "house", "is", "红", "楼", "梦", "42", "3.5", ",", "。"]), max_size=8
).map(" ".join)


@given(sayings, sayings)
def test_overlap_is_in_range_symmetric_and_whole_where_exact(one: str, other: str) -> None:
    assert 0 <= f1(one, other) <= 1
    assert (f1(one, other) == 1) >= exact_match(one, other)
    assert f1(one, one) == 1
    if ("红" in one or "楼" in one or "梦" in one) == ("红" in other or "楼" in other or "梦" in other):
        assert f1(one, other) == pytest.approx(f1(other, one))


def verdict(text: str, reference: str | list[str], mode: str) -> Verdict:
    record = Record(id="r", label="knowledge_rule", prompt="?", reference=reference)
    (found,) = run([create("match", {"mode": mode})], [Item(record, text)], 20)
    return found


def test_the_best_of_several_references_counts_and_the_thought_does_not() -> None:
    found = verdict("<think>Marie Curie</think>Curie", ["Albert Einstein", "Marie Curie"], "f1")
    assert found.score == pytest.approx(2 / 3)
    assert found.label == "partial match"
    assert verdict("Curie!", ["Marie Curie", "Curie"], "exact").score == 1
