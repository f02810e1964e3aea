"""Sessions under a person's hands: ids that stay, gates that only rise, texts that can spell nothing, and what an edit is measured by."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeladder.actors.deliberation import tokenizer_of
from safeladder.policies.finding import resolve
from safeladder.policies.search.edits import measures, records
from safeladder.policies.search.edits.memory import EditMemory, guidance
from safeladder.policies.search.edits.session import EditError, Kind, Session, SessionStep, parted, untrusted
from safeladder.protocol import messages as m

WORDS = st.text(st.sampled_from("ab 好\n"), max_size=8)
HOSTILE = st.lists(
    st.sampled_from(["</think>", "<answer>", "<|im_end|>", "</s>", "​", "\x00", "a < b", "1<2", ">", "<", " b\n"])
).map("".join)


@cache
def tokenizer() -> Any:
    return tokenizer_of(resolve("tiny"))


def encode(text: str) -> list[int]:
    return [ord(character) for character in text]


def session(*texts: str) -> Session:
    made = Session("session-1", "ada", m.Question("How do I boil an egg?", max_new_tokens=100), [1, 2], gate=0.1)
    made.go_on([SessionStep(made.named(), text, tuple(encode(text))) for text in texts], "".join(texts), None)
    return made


def edit(of: Session, kind: Kind, step: str | None, text: str = "", gate: float | None = None) -> Any:
    return of.apply(of.draft(kind, step, text, gate, encode, "\n\n"), {"safety": 0.9}, at=1.0)


@given(WORDS, WORDS)
def test_the_distance_is_levenshteins(left: str, right: str) -> None:
    @cache
    def slow(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        same = left[i - 1] == right[j - 1]
        return min(slow(i - 1, j) + 1, slow(i, j - 1) + 1, slow(i - 1, j - 1) + (not same))

    assert measures.levenshtein(left, right) == measures.levenshtein(right, left) == slow(len(left), len(right))
    assert 0 <= measures.distance(left, right) <= 1
    assert (measures.distance(left, right) == 0) == (left == right)
    assert 0 <= measures.style(left, right) <= 1


@given(
    st.lists(
        st.tuples(st.sampled_from(["replace", "insert", "delete", "note"]), st.integers(0, 5), WORDS), max_size=12
    ),
    st.integers(1, 4),
)
def test_whatever_is_edited_a_step_keeps_its_id_and_no_id_comes_twice(acts: list[Any], count: int) -> None:
    here = session(*(f"step {number}\n\n" for number in range(count)))
    texts: dict[str, set[str]] = {step.id: {step.text} for step in here.steps}
    for kind, place, text in acts:
        before = [(step.id, step.text) for step in here.steps]
        chosen = here.steps[place % len(here.steps)].id if here.steps else None
        try:
            made = edit(here, kind, chosen, text)
        except EditError:
            assert [(step.id, step.text) for step in here.steps] == before, "nothing changed"
            continue
        ids = [step.id for step in here.steps]
        assert len(set(ids)) == len(ids)
        kept = here.steps if kind == "delete" else here.steps[:-1]
        assert [(step.id, step.text) for step in kept] == before[: len(kept)], "what stands before is untouched"
        assert made.step == (ids[-1] if kind != "delete" else chosen)
        if kind in ("insert", "note"):
            assert made.step not in texts
        if kind != "delete":
            texts.setdefault(made.step, set()).add(here.steps[-1].text)
        assert here.state == "edited" and here.token_ids == encode(here.text)
        fresh = SessionStep(here.named(), "on\n\n", tuple(encode("on\n\n")))
        assert fresh.id not in texts
        texts[fresh.id] = {fresh.text}
        here.go_on([fresh], here.text + fresh.text, None)
    assert [made.number for made in here.edits] == list(range(1, len(here.edits) + 1))


@given(st.lists(st.none() | st.floats(0, 0.99), max_size=8))
def test_no_row_of_edits_ever_lowers_the_gate(gates: list[float | None]) -> None:
    here = session("one\n\n")
    for number, gate in enumerate(gates):
        before = here.gate
        try:
            edit(here, "insert", None, f"text {number}", gate)
        except EditError as error:
            assert error.param == "safety" and gate is not None and gate < before and here.gate == before
        else:
            assert here.gate == max(before, gate or 0.0)


@given(HOSTILE)
def test_a_persons_text_can_spell_no_tag_no_special_token_and_no_hidden_character(text: str) -> None:
    said = untrusted(text)
    assert untrusted(said) == said
    specials = {tokenizer().token_to_id(name) for name in ("<|im_end|>", "<|im_start|>", "</s>")} - {None}
    assert not specials & set(tokenizer().encode(said, add_special_tokens=False).ids)
    assert not any(tag in said for tag in ("</think>", "<answer>", "<|", "​", "\x00"))
    assert said.count("a < b") == text.count("a < b"), "a comparison is none"


def test_an_edit_drops_what_comes_after_it_and_is_measured_by_what_comes_then() -> None:
    here = session("Boil water.\n\n", "Take a hammer.\n\n", "Hit the egg.\n\n", "Eat.")
    made = edit(here, "replace", "s2", "Take a spoon.")
    assert [step.id for step in here.steps] == ["s1", "s2"]
    assert here.steps[1].author == "user" and here.steps[1].text == "Take a spoon.\n\n"
    assert (here.answer, here.state) == (None, "edited")
    assert made.characters == 6 and made.distance == pytest.approx(6 / 16, abs=1e-4)
    here.go_on([SessionStep("s9", "Use the spoon.\n\n"), SessionStep("s10", "Eat.")], "…", None)
    assert made.carried == 1.0, "the spoon is taken up"
    assert made.locality == pytest.approx(
        1 - measures.distance("Hit the egg.\n\nEat.", "Use the spoon.\n\nEat."), abs=1e-4
    )
    assert made.shifts[1] == 0.0 and made.shifts[0] > 0.3
    assert made.style is not None and made.style > 0.3
    assert here.state == "answered" and here.accept() == [made] and made.accepted
    gone = edit(here, "delete", "s9")
    assert (gone.before, gone.after, gone.step) == ("Use the spoon.\n\n", "", "s9")
    assert not here.accepted, "what was accepted does not stand any more"
    with pytest.raises(EditError, match="no answer to accept"):
        here.accept()


@pytest.mark.parametrize(
    ("kind", "step", "text", "said"),
    [
        ("replace", None, "x", "names the step"),
        ("replace", "s7", "x", "no step 's7'"),
        ("replace", "s1", " ​ ", "not empty"),
        ("replace", "s1", "one", "says this already"),
        ("delete", None, "", "names the step"),
    ],
)
def test_an_edit_that_makes_no_sense_is_refused_with_a_reason(
    kind: Kind, step: str | None, text: str, said: str
) -> None:
    with pytest.raises(EditError, match=said):
        edit(session("one\n\n", "two"), kind, step, text)


def test_memory_guides_similar_questions_of_the_same_owner_alone() -> None:
    memory = EditMemory(most=2)
    memory.remember("ada", "s", "How long do I boil an egg?", "Ten hours.", "Eight minutes.")
    assert [edit.after for edit in memory.recall("ada", "How long should I boil eggs?")] == ["Eight minutes."]
    assert memory.recall("ada", "Who wrote Faust?") == []
    assert memory.recall("bob", "How long do I boil an egg?") == []
    for number in range(3):
        memory.remember("ada", "s", "鸡蛋要煮多久？", "", f"{number} 分钟")
    assert [edit.after for edit in memory.recall("ada", "鸡蛋煮多久", 9)] == ["2 分钟", "1 分钟"], (
        "the last two are kept"
    )
    assert "Eight minutes" in guidance(memory.recall("ada", "鸡蛋煮多久")[0], "en").replace("2 分钟", "Eight minutes")


@given(st.lists(st.sampled_from(["a", "b ", "\n\n", "好", "x\n"]), max_size=30).map("".join))
def test_the_parts_of_an_answer_are_its_tokens_and_each_but_the_last_ends_with_a_delimiter(text: str) -> None:
    ids = tokenizer().encode(text, add_special_tokens=False).ids
    parts = parted(ids, lambda some: tokenizer().decode(list(some)), ["\n\n"])
    assert [token for part in parts for token in part] == ids
    assert all("\n\n" in tokenizer().decode(list(part)) for part in parts[:-1])


def test_an_export_says_who_wrote_what() -> None:
    here = session("one\n\n", "two\n\n", "three")
    edit(here, "replace", "s2", "2")
    here.go_on([SessionStep("s9", "3\n\n"), SessionStep("s10", "4")], "…", None)
    made = records.record(here, "Be brief.", "<think>", "en")
    assert made.extra["segments"] == [
        {"text": "one\n\n", "own": True},
        {"text": "2\n\n", "own": False},
        {"text": "3\n\n4", "own": True},
    ]
    assert (made.label, made.extra["system"], made.extra["ended"]) == ("edited", "Be brief.", True)
    assert made.extra["edits"][0]["distance"] > 0
