"""Verifiers that wait: many items at once, within one time limit, and every way of failing is a status."""

from __future__ import annotations

import asyncio
import itertools
import threading
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeladder.protocol.messages import Record, Verdict
from safeladder.verifiers import steps
from safeladder.verifiers.contract import Item, Verifier, run

RECORD = Record(id="r", label="x", prompt="What is 2 + 2?", reference="4")


class Waiting(Verifier):
    """Does with each item what its text says."""

    name, version, principle = "waiting", "1", "value"

    def __init__(self) -> None:
        super().__init__()
        self.cancelled = threading.Event()
        self.blocked = threading.Event()
        self.together = 0
        self.present = 0

    async def judge_async(self, item: Item) -> Verdict:
        match item.text:
            case "raise":
                raise KeyError("poison")
            case "exit":
                raise SystemExit(3)
            case "time out":
                raise TimeoutError("the server is slow")
            case "cancel":
                raise asyncio.CancelledError
            case "hang":
                try:
                    await asyncio.Event().wait()
                finally:
                    self.cancelled.set()
            case "block":
                self.blocked.wait(20)
            case "meet":  # goes on when four are here
                self.present += 1
                while self.present < 4:
                    await asyncio.sleep(0)
            case "not a verdict":
                return 1.0  # type: ignore[return-value]
            case "too high":
                return self.ok(item, 2.0)
            case "other step":
                return msgspec.structs.replace(self.ok(item, 1.0), step=7)
        return self.ok(item, 0.5)


STATUSES = {
    "fine": "ok",
    "raise": "error",
    "exit": "error",
    "cancel": "error",
    "time out": "timeout",
    "not a verdict": "error",
    "too high": "error",
    "other step": "error",
}


def items(*texts: str) -> list[Item]:
    return [Item(RECORD, text, sample) for sample, text in enumerate(texts)]


@given(st.lists(st.sampled_from(list(STATUSES)), max_size=8))
def test_a_failure_costs_its_own_item_and_no_other(texts: list[str]) -> None:
    verdicts = run([Waiting()], items(*texts), 10)
    assert [v.status for v in verdicts] == [STATUSES[text] for text in texts]
    assert [v.sample for v in verdicts] == [*range(len(texts))]
    assert all((v.score is not None) == (v.status == "ok") for v in verdicts)


def test_items_are_judged_at_the_same_time() -> None:
    assert [v.status for v in run([Waiting()], items(*["meet"] * 4), 20)] == ["ok"] * 4


def test_what_hangs_is_cancelled_and_what_was_judged_stands() -> None:
    verifier = Waiting()
    verdicts = run([verifier], items("fine", "hang", "fine"), 0.2)
    assert [v.status for v in verdicts] == ["ok", "timeout", "ok"]
    assert verifier.cancelled.wait(10)


def test_a_blocked_loop_is_a_time_out_and_serves_again_when_it_is_let_go() -> None:
    verifier = Waiting()
    assert [v.status for v in run([verifier], items("block"), 0.1)] == ["timeout"]
    assert [v.status for v in run([Waiting()], items("fine"), 0.1)] == ["timeout"]
    verifier.blocked.set()
    assert [v.status for v in run([Waiting()], items("fine"), 20)] == ["ok"]


class Length(Verifier):
    name, version, principle = "length", "1", "process"

    def judge_one(self, item: Item) -> Verdict:
        return self.ok(item, min(1.0, len(item.answer) / 100), rationale=item.answer)


def test_a_step_is_judged_by_itself_and_its_verdict_names_it() -> None:
    whole = Item(RECORD, "Given.<think>One.\n\nTwo\nlines.</think>\n\nThe end.", 3)
    verdicts = run([Length()], steps.of(whole, len("Given.")), 5)
    assert [(v.sample, v.target, v.step, v.rationale) for v in verdicts] == [
        (3, "step", 0, "One."),
        (3, "step", 1, "Two\nlines."),
        (3, "step", 2, "The end."),
    ]


def test_a_completion_that_is_blank_or_failed_is_no_step_but_is_not_lost() -> None:
    assert steps.of(Item(RECORD, " \n\n ", 0)) == [Item(RECORD, " \n\n ", 0)]
    assert steps.of(Item(RECORD, "a\n\nb", 0, "error")) == [Item(RECORD, "a\n\nb", 0, "error")]


@given(st.text(alphabet="ab \n<>/think", max_size=60), st.integers(0, 60))
def test_steps_stand_in_order_and_lose_nothing_but_what_parts_them(text: str, begin: int) -> None:
    begin = min(begin, len(text))
    found = list(steps.spans(text, begin))
    assert all(begin <= a < b for a, b in found)
    assert all(b <= c for (_, b), (c, _) in itertools.pairwise(found))
    rest: Any = text[begin:]
    for a, b in found:
        rest = rest.replace(text[a:b], "", 1)
    assert not rest.replace("<think>", "").replace("</think>", "").strip()
    assert all("\n\n" not in text[a:b].strip() for a, b in found)


@pytest.mark.parametrize("step", [None, 0, 4])
def test_an_abstention_keeps_its_step(step: int | None) -> None:
    verdict = Length().abstain(Item(RECORD, "x", step=step), "why")
    assert (verdict.step, verdict.target) == (step, "answer" if step is None else "step")
