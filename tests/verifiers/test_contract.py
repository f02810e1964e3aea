"""The guard: one verdict an item, and a failure is never a score."""

from __future__ import annotations

import math
import threading
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeladder.protocol.messages import Record, Verdict
from safeladder.verifiers.contract import Item, Verifier, run

RECORD = Record(id="r", label="x", prompt="What is 2 + 2?", reference="4")


def item(text: str = "4", sample: int = 0, finish: str = "stop") -> Item:
    return Item(RECORD, text, sample, finish)


class Scripted(Verifier):
    """Does with each item what its text says."""

    name, version, principle = "scripted", "1", "rules"

    def __init__(self) -> None:
        super().__init__()
        self.release = threading.Event()
        self.calls = 0

    def judge_one(self, item: Item) -> Verdict:
        match item.text:
            case "raise":
                raise KeyError("poison")
            case "hang":
                self.calls += 1
                self.release.wait(20)
            case "other sample":
                return msgspec.structs.replace(self.ok(item, 1.0), sample=item.sample + 1)
            case "other name":
                return msgspec.structs.replace(self.ok(item, 1.0), verifier="boxed")
            case "abstain with score":
                return msgspec.structs.replace(self.abstain(item, "why"), score=1.0)
            case "not a verdict":
                return 1.0  # type: ignore[return-value]
            case "bad status":
                return msgspec.structs.replace(self.ok(item, 1.0), status="fine")
            case "no score":
                return msgspec.structs.replace(self.ok(item, 1.0), score=None)
            case "abstain":
                return self.abstain(item, "nothing to say")
        return self.ok(item, 0.5)


class Fixed(Verifier):
    """Gives every item the same score, whatever that is."""

    name, version, principle = "fixed", "1", "rules"

    def __init__(self, score: Any) -> None:
        super().__init__()
        self.score = score

    def judge_one(self, item: Item) -> Verdict:
        return self.ok(item, self.score)


BREACHES = ["raise", "other sample", "other name", "abstain with score", "not a verdict", "bad status", "no score"]


@pytest.mark.parametrize("breach", BREACHES)
def test_a_breach_costs_its_own_item_and_no_other(breach: str) -> None:
    verdicts = run([Scripted()], [item("a", 0), item(breach, 1), item("b", 2)], 5)
    assert [v.status for v in verdicts] == ["ok", "error", "ok"]
    assert [v.sample for v in verdicts] == [0, 1, 2]
    assert verdicts[1].score is None
    assert verdicts[1].error


@given(st.one_of(st.floats(), st.integers(), st.booleans(), st.text(), st.none()))
def test_only_a_finite_number_in_range_is_ever_a_score(score: Any) -> None:
    (verdict,) = run([Fixed(score)], [item()], 5)
    allowed = (
        isinstance(score, (int, float)) and not isinstance(score, bool) and math.isfinite(score) and 0 <= score <= 1
    )
    assert (verdict.status == "ok") is allowed
    assert verdict.score == (score if allowed else None)
    msgspec.msgpack.decode(msgspec.msgpack.encode(verdict), type=Verdict)


@given(st.lists(st.sampled_from(["fine", "abstain", *BREACHES]), max_size=8))
def test_one_verdict_an_item_in_order_whatever_the_mixture(texts: list[str]) -> None:
    items = [item(text, sample) for sample, text in enumerate(texts)]
    verdicts = run([Scripted(), Fixed(0.25)], items, 5)
    assert [v.sample for v in verdicts] == [*range(len(texts))] * 2
    assert all((v.score is not None) == (v.status == "ok") for v in verdicts)


def test_a_wrong_number_of_verdicts_is_an_error_for_all() -> None:
    class Short(Fixed):
        def judge(self, items: Any) -> list[Verdict]:
            return super().judge(items)[1:]

    verdicts = run([Short(1.0)], [item("a", 0), item("b", 1)], 5)
    assert [v.status for v in verdicts] == ["error", "error"]
    assert "2 items" in (verdicts[0].error or "")


def test_a_verifier_that_hangs_times_out_and_is_not_called_again_while_it_hangs() -> None:
    verifier = Scripted()
    began = time.monotonic()
    first = run([verifier], [item("hang", 0), item("a", 1)], 0.2)
    second = run([verifier], [item("a", 0)], 0.2)
    assert time.monotonic() - began < 5
    assert [v.status for v in [*first, *second]] == ["timeout"] * 3
    assert verifier.calls == 1
    verifier.release.set()
    assert [v.status for v in run([verifier], [item("a", 0)], 5)] == ["ok"]


def test_a_completion_that_failed_is_not_judged() -> None:
    verdicts = run([Fixed(1.0)], [item("x", 0, "error"), item("x", 1), item("x", 2, "abort")], 5)
    assert [v.status for v in verdicts] == ["error", "ok", "error"]


def test_numpy_scores_are_accepted_as_plain_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    (verdict,) = run([Fixed(numpy.float32(0.5))], [item()], 5)
    assert (verdict.status, verdict.score, type(verdict.score)) == ("ok", 0.5, float)


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("<think>a</think> b", "a", "b"),
        ("a</think>b", "a", "b"),
        ("no thought", "", "no thought"),
        ("<think>open", "", "<think>open"),
        ("<think>a</think>b</think>c", "a</think>b", "c"),
        ("", "", ""),
    ],
)
def test_thought_and_answer_part_at_the_last_closing_tag(text: str, thought: str, answer: str) -> None:
    assert (item(text).thought, item(text).answer) == (thought, answer)


def test_an_items_language_is_its_records_unless_given() -> None:
    chinese = Record(id="z", label="x", prompt="你好", language="zh")
    assert Item(chinese, "x").language == "zh"
    assert Item(chinese, "x", language="en").language == "en"
