"""The verifiers of deliberation: the reference's reward, the quadrants that constraints count, and what they abstain from."""

from __future__ import annotations

import pytest

from safeladder.policies.recipe import Cost, Family, Recipe, Term, rewards
from safeladder.protocol.messages import Completion, Group, Record, Sampling, Verdict
from safeladder.verifiers.contract import Item, run
from safeladder.verifiers.registry import BadOptions, create

RECORD = Record("q", "search", "How many points?", reference=["308"])


def text(answer: str, confidence: int, think: str = "so") -> str:
    return f"<think>{think}</think><confidence>{confidence}</confidence><answer>{answer}</answer>"


def judge(name: str, written: str, record: Record = RECORD, **options: object) -> Verdict:
    (verdict,) = run([create(name, options)], [Item(record, written)], 5.0)
    return verdict


@pytest.mark.parametrize(
    ("written", "score", "label", "reliable"),
    [
        (text("308", 9), 1.0, "certain and right", 1.0),
        (text("It is 308 points.", 5), 1.0, "unsure and right", 0.0),
        (text("307", 6), 0.1, "false certain", 0.0),
        (text("307", 0), 0.1, "unsure and wrong", 1.0),
        (text("308", 9, think=""), 0.0, "certain and right", 0.0),
        ("stray" + text("307", 9), 0.0, "false certain", 0.0),
        ("308", 0.0, "no answer", 0.0),
        (text("308", 11), 0.0, "no answer", 0.0),
    ],
)
def test_score_and_label_follow_format_accuracy_and_confidence(
    written: str, score: float, label: str, reliable: float
) -> None:
    verdict = judge("deliberation", written)
    assert verdict.status == "ok"
    assert (verdict.score, verdict.label) == (pytest.approx(score), label)
    assert judge("reliability", written).score == reliable


def test_a_fixed_multiplier_rewards_reliability_and_keeps_the_range() -> None:
    assert judge("deliberation", text("307", 1), reliability=1.0).score == pytest.approx(1.1 / 2)
    assert judge("deliberation", text("308", 9), reliability=1.0).score == pytest.approx(1.0)
    with pytest.raises(BadOptions, match="reliability"):
        create("deliberation", {"reliability": -1.0})


def test_listing_everything_is_not_an_answer() -> None:
    assert judge("deliberation", text(" ".join(map(str, range(400))), 9)).label == "false certain"
    assert judge("deliberation", text("It is 308", 9), mode="exact").label == "false certain"


def test_without_a_reference_nothing_can_be_said() -> None:
    record = Record("q", "search", "Why?")
    assert judge("deliberation", text("308", 9), record).status == "abstain"
    assert judge("reliability", text("308", 9), record).status == "abstain"


def test_chinese_answers_are_compared_as_such() -> None:
    record = Record("q", "search", "丢了多少分？", reference="308分", language="zh")
    assert judge("deliberation", text("一共是308分。", 8), record).label == "certain and right"


def test_the_false_certain_are_the_cost_that_a_constraint_limits() -> None:
    texts = [text("307", 9), text("307", 2), text("308", 9), "no"]
    items = [Item(RECORD, written, sample) for sample, written in enumerate(texts)]
    verdicts = run([create("deliberation"), create("reliability")], items, 5.0)
    costs = {
        "false_certain": Cost("deliberation", "false certain"),
        "unreliable": Cost("reliability", "unreliable"),
    }
    recipe = Recipe({"search": Family(["searcher", "learner"], {"deliberation": Term(1.0)}, costs)})
    group = Group(
        RECORD, Sampling(4), completions=[Completion(written, "stop") for written in texts], verdicts=verdicts
    )
    earned = rewards(group, recipe)
    assert earned.total == pytest.approx([0.1, 0.1, 1.0, 0.0])
    assert earned.costs["false_certain"].tolist() == [1, 0, 0, 0]
    assert earned.costs["unreliable"].tolist() == [1, 0, 0, 1]
