"""Choice: the letter of a multiple-choice question."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from safeladder.protocol.messages import Verdict
from safeladder.verifiers.contract import Item, Verifier
from safeladder.verifiers.rules.match import normalise, says

# From the most to the least explicit way to name a letter. `{letters}` is filled with the letters of the record's choices.
_WAYS = (
    r"\\boxed\{{\s*(?:\\(?:text|mathrm|mathbf)\{{)?\(?([{letters}])\)?\}}?\s*\}}",
    r"(?i:answer|choice|option)(?:\s+(?i:is|should be|must be))?\s*(?:[:：=]|(?i:is))?\s*[*_(\[\"']*([{letters}])(?![a-zA-Z'’])",
    r"(?:答案|选项|选择|应选|故选|选)\s*(?:是|为|应该是)?\s*[:：]?\s*[*_(（\[【\"'“]*([{letters}])(?![a-zA-Z])",
    r"\A\s*[*_(\[【]*([{letters}])(?:[*_)\]】.:,，。、：]|\s*\Z)",
    r"[(\[【]([{letters}])[)\]】]",
)


class ChoiceRule(Verifier):
    """1 when the answer names the right letter, else 0; the letter found is the label.

    The letter is looked for in a box, after "answer is", at the beginning, in brackets, in that order, the last mention
    of the most explicit way; an answer that repeats the words of exactly one choice names that choice. Abstains on records without choices
    or without a reference.
    """

    name = "choice"
    version = "1"
    principle = "rules"

    def judge_one(self, item: Item) -> Verdict:
        choices, reference = item.record.choices, item.record.reference
        if not choices:
            return self.abstain(item, "the record has no choices")
        accepted = {reference} if isinstance(reference, str) else set(reference or [])
        accepted = {letter.strip().upper() for letter in accepted}
        if not accepted:
            return self.abstain(item, "the record has no reference")
        letter = chosen(item.answer, choices)
        if letter is None:
            return self.ok(item, 0.0, "no letter")
        return self.ok(item, float(letter in accepted), letter)


def chosen(answer: str, choices: Sequence[str]) -> str | None:
    """The letter that the answer names, from A; None where it names none."""
    letters = "".join(chr(ord("A") + index) for index in range(min(26, len(choices))))
    text = unicodedata.normalize("NFKC", answer)
    if len(text.strip()) == 1 and text.strip().upper() in letters:
        return text.strip().upper()
    for way in _WAYS:
        if found := re.findall(way.format(letters=letters), text):
            return str(found[-1])
    said = normalise(answer)
    named = [letter for letter, choice in zip(letters, choices, strict=False) if says(said, normalise(choice))]
    return named[0] if len(named) == 1 else None
