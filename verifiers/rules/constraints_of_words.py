"""Instruction constraints on the words of a text: which, how many, in which language and case.

Each kind is a function (text, arguments) -> whether the text keeps it, named as in IFEval (arXiv 2311.07911). English words are
runs of letters and digits; a Chinese character counts as a word, as everywhere in these rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Final, Literal

from msgspec import Meta

from safeladder.verifiers.rules.tongues import is_in
from safeladder.verifiers.rules.words import HAN, chinese_share

Check = Callable[..., bool]
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Words = Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1)]
Word = Annotated[str, Meta(min_length=1)]
Relation = Literal["at least", "less than", "at most", "more than", "exactly"]  # the first two are IFEval's

_WORD = re.compile(rf"[{HAN}]|[^\W{HAN}]+")
_CASED = re.compile(rf"[^\W\d_{HAN}]+(?:[.'’-][^\W\d_{HAN}]+)*")
_STOP = re.compile(r"[.!?]+[\"'”’)\]*_]*(?=\s|\Z)|[。！？!?…]+[”’」』)）]*|\n\s*\n")
_ABBREVIATIONS = "mr mrs ms dr prof st vs etc e.g i.e fig no inc ltd jr sr u.s a.m p.m cf approx dept"
_SHORT = frozenset(_ABBREVIATIONS.split())


def related(found: int, relation: Relation, wanted: int) -> bool:
    """Whether `found` stands in the relation to `wanted`."""
    return {
        "at least": found >= wanted,
        "less than": found < wanted,
        "at most": found <= wanted,
        "more than": found > wanted,
        "exactly": found == wanted,
    }[relation]


def _existence(text: str, *, keywords: Words) -> bool:
    return all(keyword.casefold() in text.casefold() for keyword in keywords)


def _keyword_frequency(text: str, *, keyword: Word, frequency: Count, relation: Relation = "at least") -> bool:
    return related(text.casefold().count(keyword.casefold()), relation, frequency)


def _forbidden(text: str, *, forbidden_words: Words) -> bool:
    """As whole words where the word's ends are letters of an alphabet; Chinese has no word borders."""
    return not any(_as_whole(word).search(text) for word in forbidden_words)


def _as_whole(word: str) -> re.Pattern[str]:
    alphabet = rf"[^\W{HAN}]"
    left = rf"(?<!{alphabet})" if re.match(alphabet, word) else ""
    right = rf"(?!{alphabet})" if re.search(rf"{alphabet}\Z", word) else ""
    return re.compile(left + re.escape(word) + right, re.IGNORECASE)


def _letter_frequency(
    text: str,
    *,
    letter: Annotated[str, Meta(min_length=1, max_length=1)],
    let_frequency: Count,
    let_relation: Relation = "at least",
) -> bool:
    return related(text.casefold().count(letter.casefold()), let_relation, let_frequency)


def _language(text: str, *, language: str) -> bool:
    return is_in(text, language)


def _sentences(text: str, *, num_sentences: Count, relation: Relation = "at least") -> bool:
    return related(len(sentences(text)), relation, num_sentences)


def sentences(text: str) -> list[str]:
    """English and Chinese sentences; a blank line ends one too. No end: abbreviations, initials, a point before a small letter."""
    found, begin = [], 0
    for stop in _STOP.finditer(text):
        if set(stop[0].rstrip("\"'”’)]*_")) == {"."}:
            before = re.search(r"[\w.]*\Z", text[begin : stop.start()])
            word = before[0].casefold() if before else ""
            following = text[stop.end() :].lstrip()
            if word in _SHORT or re.fullmatch(r"[a-z]", word) or following[:1].islower():
                continue
        found.append(text[begin : stop.end()].strip())
        begin = stop.end()
    found.append(text[begin:].strip())
    return [sentence for sentence in found if _WORD.search(sentence)]


def _number_of_words(text: str, *, num_words: Count, relation: Relation = "at least") -> bool:
    return related(len(_WORD.findall(text)), relation, num_words)


def _capital_words(text: str, *, capital_frequency: Count, capital_relation: Relation = "at least") -> bool:
    return related(sum(word.isupper() for word in _CASED.findall(text)), capital_relation, capital_frequency)


def _all_capital(text: str) -> bool:
    return text.isupper() and (chinese_share(text) or 0.0) <= 0.5


def _all_lowercase(text: str) -> bool:
    return text.islower() and (chinese_share(text) or 0.0) <= 0.5


def _no_comma(text: str) -> bool:
    return "," not in text and "，" not in text


KINDS: Final[dict[str, Check]] = {
    "keywords:existence": _existence,
    "keywords:frequency": _keyword_frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _language,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_words": _number_of_words,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _all_capital,
    "change_case:english_lowercase": _all_lowercase,
    "punctuation:no_comma": _no_comma,
}
