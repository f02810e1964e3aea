"""Choice: the letter of a multiple-choice question."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from safeladder.protocol.messages import Verdict
from safeladder.verifiers.contract import Item, Verifier
from safeladder.verifiers.rules.match import normalise, says

# Before a letter: brackets, quotes, emphasis. After it: no letter, so that "A" is not the article of "A bird" or the A of "Answer".
_OPEN = r"[*_(（\[【<《\"'“‘]*\s*"
_ENDS = r"(?![a-zA-Z'’])"
# A small letter, or an A that may be an article, counts only where something closes it.
_CLOSED = r"(?=\s*(?:[*_)）\]】>》\"'”’.:,;!。,，；：、]|\Z|\n))"

# From the most to the least explicit way to name a letter. `LETTERS` stands for the letters of the record's choices.
_WAYS = (
    r"\\boxed\{\s*(?:\\(?:text|mathrm|mathbf|textbf)\{)?\s*\(?([LETTERS])(?:\)|[.:,、]|\}|\s|(?=\\))",
    r"(?i:answer|choice|option)(?:\s+(?i:is|should be|must be|would be))?\s*(?:[:：=]|(?i:is))?\s*(?i:option\s+)?"
    rf"{_OPEN}([LETTERS]){_ENDS}(?!\s+(?i:is|was|are)\b)",
    rf"(?i:answer)(?:\s+is)?\s*[:：]?\s*{_OPEN}([letters]){_CLOSED}",
    r"(?<![不没非别勿能])(?:答案|选项|选择|应选|故选|选|应为|应是|正确的是|正确的为)\s*(?:应该|应|就)?(?:是|为|选)?\s*[:：]?\s*(?:选项)?\s*"
    rf"{_OPEN}([LETTERS])(?![a-zA-Z])(?!\s*项?(?:是|为)?(?:错|不))",
    r"(?<![a-zA-Z])([LETTERS])[*_)）\]】]*\s*(?:选?项)?\s*(?:是|为)?\s*(?:正确|对的|最佳|最合适)",
    r"(?<![a-zA-Z])([LETTERS])[*_)\]]*\s+(?i:is|seems|must be)\s+(?i:the\s+)?(?i:right|correct|best|most)\b",
    rf"(?i:go with|choose|chose|pick|select|opt for)\s+(?i:option\s+)?{_OPEN}([LETTERS]){_ENDS}",
    r"(?i:go with|choose|pick|select)\s+(?i:option\s+)?[(\[\"']([letters])[)\]\"']",
    rf"(?i:\bso|\bthus|\btherefore|\bhence|\bit is|\bit's)[,:]?\s+{_OPEN}([LETTERS]){_CLOSED}",
    rf"(?:所以|因此|故|它是|我认为是|应该是)[,，:：]?\s*(?:是|选)?\s*{_OPEN}([LETTERS])(?![a-zA-Z])",
    rf"\A\s*{_OPEN}([LETTERS]){_CLOSED}",
    r"\A\s*[(\[]?([letters])[)\].]",
    r"[(（\[【]([LETTERS])[)）\]】]",
)
_SEVERAL = (
    r"[*_)）\]】\"'”’]*\s*(?:,|，|、|/|(?i:or|and)\b|或者?|和|与|及|还是)\s*(?:(?i:option)\s+)?"
    + _OPEN
    + r"[LETTERS](?![a-zA-Z])"
)


class ChoiceRule(Verifier):
    """1 when the answer names the right letter, else 0; the letter found is the label.

    The letter is looked for in a box, after "answer is" or "答案是", as "C is correct", after "choose", at the beginning, in
    brackets, in that order, the last mention of the most explicit way; who names several in one breath ("A or B") has named none. An answer
    that repeats the words of exactly one choice names that choice. Abstains on records without choices or without a reference.
    """

    name = "choice"
    version = "2"
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
    """The letter that the answer names, from A; None where it names none, or several at once."""
    letters = "".join(chr(ord("A") + index) for index in range(min(26, len(choices))))
    text = unicodedata.normalize("NFKC", answer)
    if len(text.strip()) == 1 and text.strip().upper() in letters:
        return text.strip().upper()
    for way in _WAYS:
        if found := list(re.finditer(_filled(way, letters), text)):
            last = found[-1]
            several = re.compile(_filled(_SEVERAL, letters)).match(text, last.end(1))
            return None if several else last[1].upper()
    said = normalise(answer)
    named = [letter for letter, choice in zip(letters, choices, strict=False) if says(said, normalise(choice))]
    return named[0] if len(named) == 1 else None


def _filled(pattern: str, letters: str) -> str:
    return pattern.replace("LETTERS", letters).replace("[letters]", f"[{letters.lower()}]")
