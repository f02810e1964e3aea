"""Each rule keeps what its docstring promises."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeladder.protocol.messages import Record, Verdict
from safeladder.verifiers.contract import Item, run
from safeladder.verifiers.registry import RULES, create
from safeladder.verifiers.rules.boxed import CostlyFormula, boxed, equal, plain_number
from safeladder.verifiers.rules.length import overlong_penalty
from safeladder.verifiers.rules.words import words

CHINESE = "树叶在秋天变红,是因为叶绿素分解以后,其他色素显现出来。"
ENGLISH = "Leaves turn red in autumn because the green pigment breaks down and others show."


def verdict(rule: str, text: str, options: dict[str, Any] | None = None, **record: Any) -> Verdict:
    fields = {"id": "r", "label": "x", "prompt": "Why do leaves turn red?"} | record
    (found,) = run([create(rule, options)], [Item(Record(**fields), text)], 20)
    assert found.status in ("ok", "abstain"), found.error
    return found


texts = st.one_of(
    st.text(max_size=300),
    st.lists(
        st.sampled_from(
            ["<think>", "</think>", "\\boxed{", "}", "{", "^", "4", " A ", "(B)", "中文", "word ", "9", "!", "$"]
        )
    ).map("".join),
)


@given(st.sampled_from(sorted(RULES)), texts, st.sampled_from([None, "4", ["4", "four"]]))
@settings(deadline=None, max_examples=150)
def test_any_text_gets_a_score_in_range_or_an_abstention_and_always_the_same(
    rule: str, text: str, reference: str | list[str] | None
) -> None:
    for choices in (None, ["red", "green"]):
        found = verdict(rule, text, reference="B" if choices and reference else reference, choices=choices)
        again = verdict(rule, text, reference="B" if choices and reference else reference, choices=choices)
        assert (found.status, found.score, found.label) == (again.status, again.score, again.label)
        if found.score is not None:
            assert found.low <= found.score <= found.high


# ------------------------------------------------------------------------------------------------------- format


@pytest.mark.parametrize(
    ("text", "strict", "released"),
    [
        ("<think>why</think> because", 1, 1),
        (" \n<think>why</think>because", 1, 1),
        ("Sure! <think>why</think> because", 0, 1),
        ("<think>a</think><think>b</think> c", 0, 1),
        ("<think> </think> because", 0, 1),
        ("<think></think> because", 0, 0),
        ("<think>why</think>", 0, 0),
        ("<think>why because", 0, 0),
        ("</think>why<think> because", 0, 0),
        ("because", 0, 0),
        ("", 0, 0),
    ],
)
def test_format_strict_and_as_released(text: str, strict: int, released: int) -> None:
    assert verdict("format", text).score == strict
    assert verdict("format", text, {"strict": False}).score == released


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<think>why</think> so \\boxed{4}", 1),
        ("<think>so \\boxed{4}</think> it is 4", 0),
        ("\\boxed{4} <think>why</think>", 0),
        ("<think> </think> \\boxed{4}", 0),
        ("<think>why</think> \\boxed{4", 0),
        ("\\boxed{4}", 0),
    ],
)
def test_boxed_format_wants_the_thought_before_the_box(text: str, score: int) -> None:
    assert verdict("boxed_format", text).score == score


# ----------------------------------------------------------------------------------------------------- language


@pytest.mark.parametrize(
    ("question", "text", "score"),
    [
        (ENGLISH, ENGLISH, 1),
        (CHINESE, CHINESE, 1),
        (ENGLISH, CHINESE, 0),
        (CHINESE, ENGLISH, 0),
        (CHINESE, f"<think>{ENGLISH}</think>{CHINESE}", 0),
        (CHINESE, f"<think>{CHINESE}</think>{CHINESE}", 1),
        (CHINESE, "42", 1),
        (CHINESE, "```python\nfor leaf in leaves: print(leaf, colour, season)\n```\n这段代码会输出每一片叶子。", 1),
        (CHINESE, "答案是 $\\frac{a}{b} = c$ 和 \\boxed{42}", 1),
        ("什么是 TCP 的三次握手？", "TCP 用三次握手建立连接。", 1),
    ],
)
def test_language_of_thought_and_answer_is_the_questions(question: str, text: str, score: int) -> None:
    assert verdict("language", text, prompt=question).score == score


@given(st.integers(0, len(ENGLISH)), st.sampled_from("的中文是我"))
def test_one_stray_chinese_character_does_not_flip_english(place: int, stray: str) -> None:
    assert verdict("language", ENGLISH[:place] + stray + ENGLISH[place:], prompt=ENGLISH).score == 1


@given(st.integers(0, len(CHINESE)), st.sampled_from(["Python", "a", "ok then"]))
def test_one_stray_english_word_does_not_flip_chinese(place: int, stray: str) -> None:
    assert verdict("language", CHINESE[:place] + stray + CHINESE[place:], prompt=CHINESE).score == 1


@pytest.mark.parametrize(
    "question", ["Translate 'good morning' into Chinese.", "请把这句话翻译成英文。", "Answer in Chinese: who are you?"]
)
def test_language_abstains_where_the_question_names_one(question: str) -> None:
    assert verdict("language", CHINESE, prompt=question).status == "abstain"


def test_language_abstains_on_languages_that_it_does_not_know() -> None:
    assert verdict("language", "Bonjour", prompt="Bonjour", language="fr").status == "abstain"


# --------------------------------------------------------------------------------------------- length, repetition


def test_length_penalty_is_zero_then_linear_then_minus_one() -> None:
    assert [overlong_penalty(n, 100, 20) for n in (0, 80, 90, 100, 1000)] == [0, 0, -0.5, -1, -1]
    assert verdict("length", "x" * 3500, {"max_characters": 4000, "buffer": 1000}).score == -0.5


@given(st.integers(0, 500), st.integers(0, 500))
def test_a_longer_text_is_never_penalised_less(n: int, more: int) -> None:
    assert overlong_penalty(n + more, 300, 100) <= overlong_penalty(n, 300, 100)


@pytest.mark.parametrize("text", [ENGLISH, CHINESE, "", "yes", "是"])
def test_varied_text_is_not_penalised_for_repetition(text: str) -> None:
    assert verdict("repetition", text).score == 0


@pytest.mark.parametrize("phrase", ["I do not know. ", "我不知道。"])
def test_repetition_is_penalised_the_more_the_longer_it_lasts(phrase: str) -> None:
    scores = [verdict("repetition", phrase * times).score or 0.0 for times in (1, 4, 20)]
    assert scores[0] == 0 > scores[1] > scores[2] >= -1


def test_a_loop_at_the_end_of_a_long_sound_text_is_caught() -> None:
    sound = " ".join(f"word{n}" for n in range(3000))
    assert verdict("repetition", sound).score == 0
    assert verdict("repetition", sound + " round and round it goes" * 80).score == -1


def test_words_are_english_words_numbers_and_single_characters() -> None:
    assert words("Don't say 3.14 到北京!") == ["don't", "say", "3.14", "到", "北", "京"]


# -------------------------------------------------------------------------------------------------------- boxed


@pytest.mark.parametrize(
    ("text", "reference", "score"),
    [
        ("<think>it is \\boxed{5}</think> So \\boxed{4}.", "4", 1),
        ("<think>it is \\boxed{4}</think> So \\boxed{5}.", "4", 0),
        ("\\boxed{1} no, \\boxed{\\frac{1}{2}}", "0.5", 1),
        ("\\boxed{\\sqrt{8}}", "2\\sqrt{2}", 1),
        ("\\boxed{x^2+2x+1}", "(x+1)^2", 1),
        ("\\boxed{1,234}", "1234", 1),
        ("\\boxed{50\\%}", "1/2", 1),
        ("\\boxed{50\\%}", "50", 1),
        ("\\boxed{90^\\circ}", "90", 1),
        ("\\boxed{5 dollars}", "5", 1),
        ("\\boxed{5 million}", "5", 0),
        ("\\boxed{(-\\infty,3]}", "(-\\infty, 3]", 1),
        ("\\boxed{(-\\infty,3)}", "(-\\infty, 3]", 0),
        ("\\boxed{4", "4", 1),  # an open box is no box; the last number stands in
        ("The result is 72 apples.", "72", 1),
        ("一共有 1,000 元。", "1000", 1),
        ("There are 3 or 4.", ["7", "4"], 1),
        ("It is -3.", "3", 0),
        ("I do not know.", "4", 0),
        ("\\boxed{1/0}", "4", 0),
        ("", "4", 0),
    ],
)
def test_boxed_compares_values_after_the_thought(text: str, reference: str | list[str], score: int) -> None:
    assert verdict("boxed", text, reference=reference).score == score


def test_boxed_alone_counts_when_the_last_number_does_not() -> None:
    assert verdict("boxed", "It is 4.", {"last_number": False}, reference="4").score == 0


def test_boxed_abstains_without_a_reference() -> None:
    assert verdict("boxed", "\\boxed{4}").status == "abstain"


@pytest.mark.parametrize(
    "formula",
    [
        "9^{9^{9^9}}", "9^9^9", "9**9**9", "1000000!", "10^{10000000}", "(((9^{99})^{99})^{99})^{99}", "(x+y+z)^{99}",
        "9^{(9)^9}", "\\sum_{i=1}^{99999999} i", "9" * 100,
    ],
)  # fmt: skip
def test_a_formula_without_bound_is_never_handed_to_computer_algebra(formula: str) -> None:
    with pytest.raises(CostlyFormula):
        equal(formula, "3")
    assert verdict("boxed", f"\\boxed{{{formula}}}", reference="3").status == "abstain"


@pytest.mark.parametrize(
    "formula", ["x^2+y^2=4", "10^{6}", "(x-1)^2+(y+2)^2", "e^{2x}", "2^{1/2}", "2^{10}\\cdot 3^{5}"]
)
def test_ordinary_formulas_are_worked_out(formula: str) -> None:
    assert equal(formula, formula + " ")
    assert not equal(formula, "3")


def test_math_verify_works_outside_the_main_thread() -> None:
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(equal("\\frac{2}{4}\\pi", "\\frac{\\pi}{2}")))
    thread.start()
    thread.join(30)
    assert found == [True]


@given(st.text(alphabet="\\boxed{} 12^", max_size=60))
def test_boxed_content_has_balanced_braces(text: str) -> None:
    content = boxed(text)
    assert content is None or content.count("{") - content.count("\\{") == content.count("}") - content.count("\\}")


@given(st.integers(-(10**9), 10**9))
def test_a_number_equals_itself_however_it_is_written(number: int) -> None:
    assert plain_number(f"{number:,}") == plain_number(f" {number}.0 ") == number
    assert equal(f"{number:,}", str(number))


# ------------------------------------------------------------------------------------------------ choice, match


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("B. green", "B"),
        ("(B)", "B"),
        ("The answer is B.", "B"),
        ("The answer is (B) green.", "B"),
        ("Answer: **B**", "B"),
        ("答案是B。", "B"),
        ("答案：B", "B"),
        ("我选择 B", "B"),
        ("\\boxed{B}", "B"),
        ("\\boxed{\\text{B}}", "B"),
        ("A is tempting, but the answer is B", "B"),
        ("The correct option is: **(B)**", "B"),
        ("B is the right answer.", "B"),
        ("I would go with B.", "B"),
        ("answer: b", "B"),
        ("A. red is wrong. C. blue is wrong. So B.", "B"),
        ("The answer is not A. It is B.", "B"),
        ("\\boxed{\\text{(B) green}}", "B"),
        ("B项正确", "B"),
        ("正确的是 B", "B"),
        ("不选A，选B", "B"),
        ("A、C都不对，应选Ｂ", "B"),
        ("因此，B 是正确的", "B"),
        ("正确选项为【B】", "B"),
        ("The answer is B or C", "no letter"),
        ("答案是A还是B", "no letter"),
        ("<think>The answer is A</think>The answer is B", "B"),
        ("It must be green, I believe.", "B"),
        ("Both red and green.", "no letter"),
        ("A good question!", "no letter"),
        ("E", "no letter"),
        ("", "no letter"),
    ],
)
def test_choice_finds_the_letter(text: str, letter: str) -> None:
    found = verdict("choice", text, reference="B", choices=["red", "green", "blue", "white"])
    assert (found.label, found.score) == (letter, float(letter == "B"))


def test_choice_and_match_share_the_records_out_between_them() -> None:
    assert verdict("choice", "B", reference="B").status == "abstain"
    assert verdict("match", "B", reference="B", choices=["red", "green"]).status == "abstain"
    assert verdict("match", "red").status == "abstain"
    assert verdict("match", "red", reference=["", "!"]).status == "abstain"


@pytest.mark.parametrize(
    ("text", "reference", "contains", "exact"),
    [
        ("Paris", "paris", 1, 1),
        ("The Pacific Ocean.", ["Pacific", "Pacific Ocean"], 1, 1),
        ("It is in Paris, France", "Paris", 1, 0),
        ("Parisian", "Paris", 0, 0),
        ("答案是北京。", "北京", 1, 0),
        ("北京", "北京", 1, 1),
        ("南京", "北京", 0, 0),
        ("Ｈ２Ｏ", "H2O", 1, 1),
        ("地球绕着太阳转", "太阳", 1, 0),
        ("They have 8 legs", ["8", "eight"], 1, 0),
        ("They have 18 legs", ["8", "eight"], 0, 0),
        ("3.5", "3", 0, 0),
        ("1,000", "1000", 1, 1),
        ("<think>Paris</think>London", "Paris", 0, 0),
        ("", "Paris", 0, 0),
    ],
)
def test_match_compares_whole_words(text: str, reference: str | list[str], contains: int, exact: int) -> None:
    assert verdict("match", text, reference=reference).score == contains
    assert verdict("match", text, {"mode": "exact"}, reference=reference).score == exact
