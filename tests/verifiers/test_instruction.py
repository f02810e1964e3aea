"""The instruction rule: every kind of constraint is kept by one text and broken by another, and none is ever guessed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeladder.protocol.messages import Record, Verdict
from safeladder.verifiers.contract import Item, run
from safeladder.verifiers.registry import create
from safeladder.verifiers.rules.constraints_of_words import sentences
from safeladder.verifiers.rules.instruction import KINDS
from safeladder.verifiers.rules.tongues import is_in


def verdict(text: str, extra: dict[str, Any], **options: Any) -> Verdict:
    record = Record(id="r", label="instruction", prompt="Do it.", extra=extra)
    (found,) = run([create("instruction", options)], [Item(record, text)], 20)
    return found


def constraint(kind: str, **arguments: Any) -> dict[str, Any]:
    return {"kind": kind, **arguments}


LENGTH, FORMAT, CASE = "length_constraints", "detectable_format", "change_case"
CASES = [
    (constraint("keywords:existence", keywords=["river", "Bank"]), "The bank of the River.", "The bank."),
    (constraint("keywords:existence", keywords=["河流"]), "这条河流很长。", "这条江很长。"),
    (constraint("keywords:frequency", keyword="tea", frequency=2), "Tea, then tea.", "Tea."),
    (constraint("keywords:frequency", keyword="茶", frequency=2, relation="less than"), "喝茶。", "喝茶，茶好。"),
    (constraint("keywords:forbidden_words", forbidden_words=["art"]), "A party.", "An art."),
    (constraint("keywords:forbidden_words", forbidden_words=["可能"]), "一定会。", "这可能会。"),
    (constraint("keywords:letter_frequency", letter="z", let_frequency=2), "Zigzag.", "Zig."),
    (constraint("language:response_language", language="zh-cn"), "今天 Tom 去上学，天气很好。", "Tom goes to school today."),
    (constraint("language:response_language", language="fr"), "Le chat est sur la table.", "The cat is on the table."),
    (constraint(f"{LENGTH}:number_sentences", num_sentences=2), "Dr. No came. He left.", "Dr. No came at 3.5."),
    (constraint(f"{LENGTH}:number_sentences", num_sentences=2, relation="less than"), "他走了。", "他来了。他走了！"),
    (constraint(f"{LENGTH}:number_words", num_words=4, relation="exactly"), "one two three four", "one two three"),
    (constraint(f"{LENGTH}:number_words", num_words=5, relation="less than"), "今天很好。", "今天天气很好。"),
    (constraint(f"{LENGTH}:number_paragraphs", num_paragraphs=2), "one\n***\ntwo", "one\n\ntwo"),
    (
        constraint(f"{LENGTH}:nth_paragraph_first_word", num_paragraphs=2, nth_paragraph=2, first_word="still"),
        "One here.\n\n\"Still, two.",
        "One here.\n\nStillness, two.",
    ),
    (
        constraint(f"{LENGTH}:nth_paragraph_first_word", num_paragraphs=2, nth_paragraph=1, first_word="首先"),
        "首先，是这样。\n\n其次，是那样。",
        "其次，是那样。\n\n首先，是这样。",
    ),
    (constraint("detectable_content:number_placeholders", num_placeholders=2), "[name] of [place]", "[name] of []"),
    (constraint("detectable_content:postscript", postscript_marker="P.S."), "Bye.\nP. S. more", "Bye. PS more"),
    (constraint("detectable_content:postscript", postscript_marker="附注"), "再见。\n附注：还有一点", "再见。"),
    (constraint(f"{FORMAT}:number_bullet_lists", num_bullets=2), "Two:\n* a\n- b", "Two:\n* a\n**b**"),
    (constraint(f"{FORMAT}:constrained_response"), "My answer is no.", "My answer is never."),
    (constraint(f"{FORMAT}:constrained_response", options=["我选是。", "我选否。"]), "我选否。", "我不选。"),
    (constraint(f"{FORMAT}:number_highlighted_sections", num_highlights=2), "*a* and **b c**", "*a* and ** **"),
    (constraint(f"{FORMAT}:multiple_sections", section_spliter="SECTION", num_sections=2), "SECTION 1 a\nSECTION 2 b", "SECTION a"),
    (constraint(f"{FORMAT}:multiple_sections", section_spliter="部分", num_sections=2), "第一部分\n第二部分", "第一部分"),
    (constraint(f"{FORMAT}:json_format"), '```json\n{"a": [1, 2]}\n```', "{'a': 1}"),
    (constraint(f"{FORMAT}:title"), "<<红楼>>\n正文", "<< >>\ntext"),
    (constraint("combination:two_responses"), "one\n******\ntwo", "one\n******\none"),
    (constraint("combination:repeat_prompt", prompt_to_repeat="Say it."), "say it. It.", "It. Say it."),
    (constraint("startend:end_checker", end_phrase="That is all."), 'Well. "That is all."', "That is all. Bye."),
    (constraint("startend:quotation"), "“全文如此”", '"half" of it'),
    (constraint(f"{CASE}:capital_word_frequency", capital_frequency=2), "NASA and the U.S. agree", "NASA and Us agree"),
    (constraint(f"{CASE}:english_capital"), "ALL LOUD.", "All LOUD."),
    (constraint(f"{CASE}:english_lowercase"), "all quiet.", "All quiet."),
    (constraint("punctuation:no_comma"), "one two", "one，two"),
]  # fmt: skip


def test_the_cases_cover_every_kind() -> None:
    assert {case["kind"] for case, _, _ in CASES} == set(KINDS)


@pytest.mark.parametrize(("asked", "kept", "broken"), CASES, ids=[case["kind"] for case, _, _ in CASES])
def test_a_constraint_is_kept_by_one_text_and_broken_by_another(asked: dict[str, Any], kept: str, broken: str) -> None:
    assert verdict(f"<think>{broken}</think>{kept}", {"constraints": [asked]}).score == 1
    found = verdict(f"<think>{kept}</think>{broken}", {"constraints": [asked]})
    assert (found.score, found.label) == (0, f"broken: {asked['kind']}")


def test_the_public_files_fields_say_the_same() -> None:
    extra = {
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [{"num_words": None}, {"num_words": 3.0, "relation": "at least", "keywords": None}],
    }
    assert verdict("one two three", extra).score == 1
    assert verdict("one two", extra).label == "broken: length_constraints:number_words"


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"constraints": [constraint("keywords:existance", keywords=["a"])]}, "did you mean 'keywords:existence'"),
        ({"constraints": [{"keywords": ["a"]}]}, "constraints[0]: no constraint of kind None"),
        ({"constraints": ["no commas"]}, "constraints[0] must be a map"),
        ({"constraints": "no commas"}, "constraints must be a list"),
        ({"constraints": [constraint("keywords:existence")]}, "(keywords:existence): needs keywords"),
        ({"constraints": [constraint("keywords:existence", keywords="a")]}, "keywords: Expected `array`"),
        ({"constraints": [constraint("keywords:existence", keywords=[])]}, "length >= 1"),
        ({"constraints": [constraint("punctuation:no_comma", comma=1)]}, "unknown argument 'comma'; it takes none"),
        ({"constraints": [constraint(f"{LENGTH}:number_words", num_words=-1)]}, "num_words: Expected `int` >= 0"),
        ({"constraints": [constraint(f"{LENGTH}:number_words", num_words=2.5)]}, "num_words"),
        ({"constraints": [constraint(f"{LENGTH}:number_words", num_words=2, relation="around")]}, "relation"),
        ({"constraints": [constraint("language:response_language", language="tlh")]}, "'tlh'"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}, {}]}, "kwargs has 2 entries"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": ["x"]}, "arguments must be a map"),
    ],
)
def test_a_constraint_that_cannot_be_read_is_an_error_that_names_it_and_never_a_score(
    extra: dict[str, Any], said: str
) -> None:
    sound = constraint("punctuation:no_comma")
    for more in (
        {},
        {"constraints": [sound, *extra["constraints"]]} if isinstance(extra.get("constraints"), list) else {},
    ):
        found = verdict("one two", {**extra, **more})
        assert (found.status, found.score) == ("error", None)
        assert said.replace("constraints[0]", "constraints[1]" if more else "constraints[0]") in str(found.error)


def test_one_unreadable_record_costs_the_others_of_the_batch_nothing() -> None:
    def item(sample: int, kind: str) -> Item:
        return Item(Record(id="r", label="x", prompt="?", extra={"constraints": [constraint(kind)]}), "one", sample)

    found = run([create("instruction")], [item(0, "punctuation:no_comma"), item(1, "punctuation:none")], 20)
    assert [v.status for v in found] == ["ok", "error"]


def test_a_record_without_constraints_gets_an_abstention() -> None:
    assert verdict("one", {}).status == verdict("one", {"constraints": []}).status == "abstain"


def test_an_empty_answer_keeps_nothing() -> None:
    assert verdict("<think>one</think>", {"constraints": [constraint("punctuation:no_comma")]}).score == 0


def test_score_all_wants_all_and_share_counts() -> None:
    extra = {"constraints": [constraint("punctuation:no_comma"), constraint(f"{CASE}:english_capital")]}
    assert verdict("one", extra).score == 0
    assert verdict("one", extra, score="share").score == 0.5
    assert verdict("ONE", extra, score="share").score == verdict("ONE", extra).score == 1


def test_loose_forgives_a_line_before_and_after_and_asterisks() -> None:
    extra = {"constraints": [constraint("startend:quotation")]}
    text = 'Here it is:\n**"All of it."**\nI hope it helps.'
    assert (verdict(text, extra).score, verdict(text, extra, mode="loose").score) == (0, 1)


readable = st.sampled_from([case for case, _, _ in CASES])
texts = st.one_of(
    st.text(max_size=120),
    st.lists(st.sampled_from(["*", "***", "\n", "\n\n", "Word ", "文字", "。", ". ", "[x]", "<<t>>", '"', "- a"])).map("".join),
    st.sampled_from([text for _, kept, broken in CASES for text in (kept, broken)]),
)  # fmt: skip


@given(texts, st.lists(readable, min_size=1, max_size=4))
@settings(deadline=None)
def test_order_does_not_matter_loose_forgives_and_never_condemns_and_all_is_a_share_of_one(
    text: str, asked: list[dict[str, Any]]
) -> None:
    strict = verdict(text, {"constraints": asked}, score="share").score
    assert strict is not None
    assert 0 <= strict <= 1
    assert verdict(text, {"constraints": asked[::-1]}, score="share").score == strict
    loose = verdict(text, {"constraints": asked}, mode="loose", score="share").score
    assert loose is not None
    assert loose >= strict
    assert verdict(text, {"constraints": asked}).score == float(strict == 1)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Dr. Smith paid 3.5 dollars. He left! Why? e.g. this one.", 4),
        ('J. R. Tolkien wrote... it. "Really?" Yes.', 3),
        ("今天天气很好。我们去公园吧！你觉得呢？他说：“好。”", 4),
        ("A heading\n\nA sentence", 2),
        ("...", 0),
        ("", 0),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text: str, count: int) -> None:
    assert len(sentences(text)) == count


TONGUES = {
    "en": "The cat sat on the mat and it was happy.",
    "de": "Die Katze ist nicht auf der Matte und schläft.",
    "fr": "Le chat est sur le tapis et il dort dans la maison.",
    "es": "El gato está en la alfombra y es muy feliz con los niños.",
    "it": "Il gatto è sul tappeto e non dorme con gli altri.",
    "pt": "O gato está no tapete e não dorme com os outros, você vê.",
    "zh": "猫坐在垫子上，非常高兴。",
    "ja": "猫はマットの上に座っています。",
    "ko": "고양이가 매트 위에 앉아 있다.",
    "ru": "Кошка сидит на ковре, и она не спит, это так.",
    "uk": "Кішка сидить на килимі, і вона не спить, як він.",
    "ar": "القط في البيت وهو نائم على الأرض.",
    "fa": "گربه در خانه است و این را می‌خواهد.",
    "hi": "बिल्ली घर में है और वह सो रही है।",
    "th": "แมวนั่งอยู่บนเสื่อ",
    "vi": "Con mèo là của tôi và không ngủ trong nhà.",
}


@pytest.mark.parametrize("language", TONGUES)
def test_a_sentence_is_in_its_own_language_alone_and_a_stray_word_changes_nothing(language: str) -> None:
    text = TONGUES[language]
    assert [other for other in TONGUES if is_in(text, other)] == [language]
    stray = "的" if language != "zh" else " okay "
    assert is_in(f"{text} {stray}", language)
    assert not is_in("42 + 1 = 43", language)
