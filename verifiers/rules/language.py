"""Language: thought and answer are in the language of the question. English and Chinese.

Languages are told apart by proportion, not by the presence of a character: one stray character flips nothing.
"""

from __future__ import annotations

import re
from typing import Literal

from safeladder.protocol.messages import Verdict
from safeladder.verifiers.contract import Item, Verifier
from safeladder.verifiers.rules.words import chinese_share

# A question that names a language may well want its answer in that one.
_NAMES_LANGUAGE = re.compile(
    r"\btranslat|\b(?:in|into|to|from) (?:english|chinese|mandarin)\b|翻译|译成|译为|[用以](?:英|中|汉)[文语]|英译|汉译",
    re.IGNORECASE,
)


class LanguageRule(Verifier):
    """1 when the thought (if any) and the answer are in the question's language, else 0 with the fault as label.

    A text is Chinese when more than half of its Chinese characters and words are Chinese characters. A text of numbers,
    formulas or code alone agrees with any language. Abstains on records in other languages and on questions that name a language.
    """

    name = "language"
    version = "1"
    principle = "rules"

    def judge_one(self, item: Item) -> Verdict:
        if item.language not in ("en", "zh"):
            return self.abstain(item, f"the record's language is {item.language!r}; this rule knows en and zh")
        if _NAMES_LANGUAGE.search(item.record.prompt):
            return self.abstain(item, "the question names a language")
        expected = written_in(item.record.prompt) or item.language
        for part, text in (("answer", item.answer), ("thought", item.thought)):
            found = written_in(text)
            if found not in (None, expected):
                return self.ok(item, 0.0, f"{part} in {found}, question in {expected}")
        return self.ok(item, 1.0, f"all in {expected}")


def written_in(text: str) -> Literal["en", "zh"] | None:
    """The language that has the majority in the text; None where it holds no words."""
    share = chinese_share(text)
    if share is None:
        return None
    return "zh" if share > 0.5 else "en"
