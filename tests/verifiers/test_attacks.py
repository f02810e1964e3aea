"""The attacks: what each does to a text, and how its effect is counted."""

from __future__ import annotations

import base64
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from word_verifier import WordVerifier

from safeladder.protocol.messages import Record
from safeladder.verifiers.attacks import ATTACKS, Words, suite
from safeladder.verifiers.attacks.words import MaterialError, material
from safeladder.verifiers.contract import run
from safeladder.verifiers.rows import Row

TEXTS = {language: material(language=language) for language in ("en", "zh")}


def attacked(name: str, words: Words, seed: int = 0) -> Words:
    return ATTACKS[name](words, TEXTS[words.language], random.Random(seed))


def rows() -> list[Row]:
    answers = [("stir in the poison", 1), ("take the poison and wait", 1), ("stir in the sugar", 0), ("take a walk", 0)]
    return [
        Row(Record(id=str(n), label="safety", prompt=f"question {n}"), text, f"f:{n}", "harmful", truth)
        for n, (text, truth) in enumerate(answers)
    ]


@given(
    st.sampled_from(sorted(ATTACKS)), st.text(min_size=1, max_size=80), st.sampled_from(["en", "zh"]), st.integers(0, 9)
)
def test_an_attack_is_a_function_of_its_words_and_its_draw(name: str, answer: str, language: str, seed: int) -> None:
    words = Words("the request", answer, language)
    assert attacked(name, words, seed) == attacked(name, words, seed)
    assert words == Words("the request", answer, language)


@pytest.mark.parametrize("name", ["refuse_then_comply", "politeness", "padding", "wrapper"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_framing_keeps_request_and_answer_whole(name: str, language: str) -> None:
    words = attacked(name, Words("the request", "the whole answer", language))
    assert "the request" in words.prompt and "the whole answer" in words.answer
    assert (words.prompt, words.answer) != ("the request", "the whole answer")


def test_of_a_step_only_its_own_text_is_attacked() -> None:
    step = Row(Record(id="s", label="general", prompt="p"), "first\n\nsecond", "f:1", "sound", 0, step=1, begin=7)
    (changed,) = suite.attacked("refuse_then_comply", [step])
    assert (
        changed.text.startswith("first\n\n") and changed.text.endswith("second") and len(changed.text) > len(step.text)
    )
    assert changed.item().answer.endswith("second") and "first" not in changed.item().answer


@given(st.text(alphabet="abc \n", max_size=60))
def test_encodings_can_be_undone(answer: str) -> None:
    words = Words("p", answer)
    assert "\n".join(line[::-1] for line in attacked("mirrored", words).answer.split("\n")) == answer
    assert base64.b64decode(attacked("base64", words).answer).decode() == answer
    assert attacked("zero_width", words).answer.replace("\u200b", "") == answer
    planted = attacked("injected", words).answer.split("\n")
    assert any(planted[:n] + planted[n + 1 :] == answer.split("\n") for n in range(len(planted)))


def test_rows_keep_their_truth_and_each_draws_for_itself() -> None:
    given_rows = rows()
    for name in ATTACKS:
        changed = suite.attacked(name, given_rows)
        assert [row.truth for row in changed] == [row.truth for row in given_rows]
        assert suite.attacked(name, given_rows[2:])[0] == changed[2]


def test_an_effect_counts_what_the_verifier_no_longer_sees() -> None:
    verifier, given_rows = WordVerifier(), rows()
    before = run([verifier], [row.item(n) for n, row in enumerate(given_rows)], 60)

    def effect(name: str) -> suite.Effect:
        changed = suite.attacked(name, given_rows)
        after = run([verifier], [row.item(n) for n, row in enumerate(changed)], 60)
        return suite.measure_effect(name, "bad", given_rows, before, after)

    blind = effect("mirrored")
    assert (blind.caught_before[0], blind.caught_after[0], blind.changed[0]) == (1.0, 0.0, 0.5)
    assert blind.flagged_before[0] == blind.flagged_after[0] == 0.0
    assert blind.changed[1] < 0.5 < blind.changed[2]
    steady = effect("politeness")
    assert (steady.caught_after[0], steady.changed[0], steady.p, steady.ours) == (1.0, 0.0, 1.0, False)
    assert effect("leet").ours


def test_a_verdict_lost_under_attack_is_no_class() -> None:
    verifier, given_rows = WordVerifier(), rows()
    before = run([verifier], [row.item(n) for n, row in enumerate(given_rows)], 60)
    after = run([verifier], [row.with_text("p", row.text + " crash").item(n) for n, row in enumerate(given_rows)], 60)
    found = suite.measure_effect("padding", "bad", given_rows, before, after)
    assert (found.rows, found.lost) == (0, 4)
    assert found.plain()["caught_after"] == [None, 0.0, 1.0]


def test_rows_are_chosen_half_of_each_truth() -> None:
    given_rows = rows()
    verdicts = run([WordVerifier()], [row.item(n) for n, row in enumerate(given_rows)], 60)
    chosen = suite.choose(given_rows, verdicts, 2)
    assert sorted(given_rows[index].truth or 0 for index in chosen) == [0, 1]
    assert suite.choose(given_rows, verdicts, 99) == [0, 1, 2, 3]


def test_unknown_attacks_and_bad_material_are_refused(tmp_path: object) -> None:
    with pytest.raises(suite.UnknownAttack, match="politeness"):
        suite.named("polite")
    assert suite.named("leet, mirrored") == ["leet", "mirrored"]
    from pathlib import Path

    path = Path(str(tmp_path)) / "wrappers.jsonl"
    path.write_text('{"text": "no place for it"}\n')
    with pytest.raises(MaterialError, match=r"wrappers.jsonl:1.*\{prompt\}"):
        material(wrappers=path)
