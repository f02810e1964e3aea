"""Match: the answer is, or says, one of the accepted strings."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

from safeladder.protocol.messages import Verdict
from safeladder.verifiers.contract import Item, Verifier
from safeladder.verifiers.rules.words import HAN, words

_ARTICLES = frozenset({"a", "an", "the"})
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_HAN = re.compile(rf"[{HAN}]")
_ENDS_IN_HAN = re.compile(rf"[{HAN}]$")
_BEGINS_IN_HAN = re.compile(rf"^[{HAN}]")
_TOKEN = re.compile(rf"[{HAN}]|[^\s{HAN}]+")
# What makes another number of a number is no punctuation: a decimal point, and a sign that nothing stands before.
_OF_A_NUMBER = re.compile(r"(?<=\d)\.(?=\d)|(?<!\S)-(?=\d)")


class MatchRule(Verifier):
    """How well the answer matches the reference (the best of them, where it is a list).

    Modes `exact` and `f1` measure the whole answer as SQuAD does and, for Chinese, CMRC 2018 (`exact_match`, `f1`). Mode `contains`
    gives 1 where the reference stands in the answer as whole words, however long it is, and so cannot tell "Paris" from
    "not Paris". Abstains without a reference, and on records with choices, which are for the rule `choice`.
    """

    name = "match"
    version = "2"
    principle = "rules"

    @dataclass(frozen=True)
    class Options:
        mode: Literal["contains", "exact", "f1"] = "contains"

    def judge_one(self, item: Item) -> Verdict:
        reference = item.record.reference
        if item.record.choices:
            return self.abstain(item, "the record has choices")
        accepted = [reference] if isinstance(reference, str) else (reference or [])
        accepted = [text for text in accepted if normalise(text)]
        if not accepted:
            return self.abstain(item, "the record has no reference")
        score = max(self._score(item.answer, text) for text in accepted)
        return self.ok(item, score, "match" if score == 1.0 else "partial match" if score > 0.0 else "no match")

    def _score(self, answer: str, reference: str) -> float:
        if self.options.mode == "f1":
            return f1(answer, reference)
        if self.options.mode == "exact":
            return float(exact_match(answer, reference))
        return float(says(normalise(answer), normalise(reference)))


# ------------------------------------------------------------------------------------------ of the whole answer


def exact_match(answer: str, reference: str) -> bool:
    """Whether both are the same text but for case, punctuation, English articles and space: SQuAD's and CMRC's exact match."""
    return tokens(answer) == tokens(reference)


def f1(answer: str, reference: str) -> float:
    """Overlap of two texts in [0, 1]: 2 common / (tokens of the answer + tokens of the reference).

    SQuAD 1.1 (arXiv 1606.05250) counts common tokens wherever they stand. For a reference with Chinese characters common is, as in
    CMRC 2018 (arXiv 1810.07366), the longest run of tokens, each a character or a foreign word, that stands in both. Two empty
    texts match.
    """
    said, wanted = tokens(answer), tokens(reference)
    if not said or not wanted:
        return float(said == wanted)
    if _HAN.search(reference):
        matcher = SequenceMatcher(None, said, wanted, autojunk=False)
        common = matcher.find_longest_match().size
    else:
        common = sum((Counter(said) & Counter(wanted)).values())
    return 2.0 * common / (len(said) + len(wanted))


def tokens(text: str) -> list[str]:
    """Words between spaces and single Chinese characters, in lower case, without punctuation and articles.

    Punctuation within a word vanishes ("U.S." is "us"), as in SQuAD; ours: full-width forms are made plain, and the
    point and the sign of a number stay, so that 3.5 is neither 35 nor -3.5.
    """
    plain = unicodedata.normalize("NFKC", text).casefold().replace("−", "-")
    kept = {found.start() for found in _OF_A_NUMBER.finditer(plain)}
    bare = "".join(c for place, c in enumerate(plain) if place in kept or not _is_punctuation(c))
    return [token for token in _TOKEN.findall(bare) if token not in _ARTICLES]


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character)[0] == "P"


# --------------------------------------------------------------------------------------------- within the answer


def normalise(text: str) -> str:
    """Lower-case words joined by single spaces, Chinese characters joined by nothing, without punctuation and articles."""
    plain = _THOUSANDS.sub("", unicodedata.normalize("NFKC", text).casefold())
    result = ""
    for word in words(plain):
        if word in _ARTICLES:
            continue
        spaced = result and not (_ENDS_IN_HAN.search(result) and _BEGINS_IN_HAN.match(word))
        result += f" {word}" if spaced else word
    return result


def says(answer: str, reference: str) -> bool:
    """Whether the reference stands in the answer, both normalised, as whole words; Chinese has no word borders to ask for."""
    left = "" if _BEGINS_IN_HAN.match(reference) else r"(?<!\S)"
    right = "" if _ENDS_IN_HAN.search(reference) else r"(?!\S)"
    return re.search(left + re.escape(reference) + right, answer) is not None
