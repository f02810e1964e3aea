"""Match: the answer is, or says, one of the accepted strings."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from safeladder.protocol.messages import Verdict
from safeladder.verifiers.contract import Item, Verifier
from safeladder.verifiers.rules.words import HAN, words

_ARTICLES = frozenset({"a", "an", "the"})
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_ENDS_IN_HAN = re.compile(rf"[{HAN}]$")
_BEGINS_IN_HAN = re.compile(rf"^[{HAN}]")


class MatchRule(Verifier):
    """1 when the answer matches the reference (any of them, where it is a list), else 0.

    Compared are words: no case, no punctuation, no English articles, full-width forms made plain. Mode `contains` accepts
    the reference as whole words within a longer answer, and so cannot tell "Paris" from "not Paris"; mode `exact` wants nothing else.
    Abstains without a reference, and on records with choices, which are for the rule `choice`.
    """

    name = "match"
    version = "1"
    principle = "rules"

    @dataclass(frozen=True)
    class Options:
        mode: Literal["contains", "exact"] = "contains"

    def judge_one(self, item: Item) -> Verdict:
        reference = item.record.reference
        if item.record.choices:
            return self.abstain(item, "the record has choices")
        accepted = [reference] if isinstance(reference, str) else (reference or [])
        accepted = [normal for text in accepted if (normal := normalise(text))]
        if not accepted:
            return self.abstain(item, "the record has no reference")
        answer = normalise(item.answer)
        if self.options.mode == "exact":
            right = answer in accepted
        else:
            right = any(says(answer, text) for text in accepted)
        return self.ok(item, float(right), "match" if right else "no match")


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
