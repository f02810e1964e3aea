"""Boxed: the final answer of a calculation equals the reference."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from fractions import Fraction

from safeladder.protocol.messages import Verdict
from safeladder.verifiers.contract import Item, Verifier

_NUMBER = re.compile(r"[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s*/\s*\d+)?%?|[-+−]?\.\d+")
_PLAIN = re.compile(r"([-+]?)(\d+|\d*\.\d+|\d+\.)(?:/(\d+))?(%?)")

# What computer algebra may be asked to work out. sympy evaluates powers, factorials and sums in C, where neither a signal in a
# thread nor a thread's deadline stops it: 9^{9^{9^9}} holds the interpreter for good. So a formula is weighed before it is read.
_MAX_FORMULA = 200  # characters
_MAX_DIGITS = 60  # of one number
_MAX_EXPONENT = 100  # of a number or a letter
_MAX_VALUE_EXPONENT = 1000  # all powers of powers together, numbers only
_MAX_EXPANSION = 12  # powers of groups together, where there are letters: (x+y+z)^{99} takes 17 s
_UNBOUNDED = re.compile(
    r"!|\\(?:sum|prod|int|lim|binom)|factorial|binomial|(?:\^|\*\*)\s*-?\w+\s*(?:\^|\*\*)|\\infty\s*[}\])]*\s*(?:\^|\*\*)"
)
_DEGREES = re.compile(r"\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})")
_UNIT = re.compile(
    r"(?P<number>[-+]?[\d.,]+)\s+(?!(?:hundred|thousand|million|billion|trillion|dozen|percent)\b)[a-zA-Z][a-zA-Z ]*"
)
_POWER = re.compile(r"(?P<group>[)}\]|])?\s*(?:\^|\*\*)\s*(?:[{(](?P<inside>[^{}()]*)[})]|(?P<bare>-?\w))")
_EXPONENT = re.compile(r"\s*[-+]?\s*(\d*)\s*[a-zA-Z]{0,2}\s*(?:/\s*\d{1,2})?\s*")

# It warns at each call that its own time limits are off, which is on purpose.
logging.getLogger("math_verify").setLevel(logging.ERROR)


class BoxedRule(Verifier):
    r"""1 when the last `\boxed{...}` of the answer equals the reference, else 0.

    Without a box, the last number of the answer stands in for it when `last_number` is on. Plain numbers are compared as exact
    fractions, with a unit or without, a percentage as a share or as its number; anything else by math-verify (symbolic
    equality). Abstains without a reference and on formulas that would cost without bound. A list as reference accepts any of
    its members.
    """

    name = "boxed"
    version = "2"
    principle = "rules"

    @dataclass(frozen=True)
    class Options:
        last_number: bool = True

    def judge_one(self, item: Item) -> Verdict:
        reference = item.record.reference
        accepted = [reference] if isinstance(reference, str) else (reference or [])
        if not accepted:
            return self.abstain(item, "the record has no reference")
        found = boxed(item.answer)
        if found is None and self.options.last_number:
            found = last_number(item.answer)
        if found is None:
            return self.ok(item, 0.0, "no answer found")
        try:
            right = any(equal(found, text) for text in accepted)
        except CostlyFormula as error:
            return self.abstain(item, str(error))
        return self.ok(item, float(right), "equal" if right else "not equal")


class CostlyFormula(ValueError):
    """A formula that computer algebra might not get done with."""


def boxed(text: str) -> str | None:
    r"""What the last complete `\boxed{...}` holds, braces balanced; None where there is none."""
    for start in reversed([match.end() for match in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for end in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0) if text[end - 1] != "\\" else 0
            if depth == 0:
                return text[start:end].strip()
    return None


def last_number(text: str) -> str | None:
    """The last number of the text: sign, thousands separators, decimals, a fraction bar, a percent sign."""
    found = _NUMBER.findall(text)
    return found[-1] if found else None


def equal(answer: str, reference: str) -> bool:
    """Whether two mathematical expressions are equal. Raises CostlyFormula."""
    if answer.strip() == reference.strip():
        return True
    answer, reference = _DEGREES.sub("", answer), _DEGREES.sub("", reference)
    left, right = plain_number(answer), plain_number(reference)
    if left is None and right is not None and (united := _UNIT.fullmatch(answer.strip())):
        left = plain_number(united["number"])
    if left is not None and right is not None:
        percent = "%" in answer, "%" in reference  # 50% for a reference of 50 is meant as well as 50% for 0.5
        return (
            left == right
            or (percent == (True, False) and left * 100 == right)
            or (percent == (False, True) and left == right * 100)
        )
    if costly(answer):
        raise CostlyFormula("the formula could cost more to work out than it is worth")
    return _symbolically_equal(answer, reference)


def plain_number(text: str) -> Fraction | None:
    """The exact value of a plain decimal number, fraction or percentage; None for anything else, and for division by 0."""
    bare = text.strip().strip("$").replace("−", "-").replace("\\%", "%").rstrip(".")
    bare = re.sub(r"\s+|(?<=\d),(?=\d{3}(?!\d))|\\[,!]", "", bare)
    found = _PLAIN.fullmatch(bare)
    if found is None or len(bare) > _MAX_DIGITS:
        return None
    sign, number, divisor, percent = found.groups()
    if divisor is not None and int(divisor) == 0:
        return None
    value = Fraction(number) / int(divisor or 1) / (100 if percent else 1)
    return -value if sign == "-" else value


def costly(formula: str) -> bool:
    """Whether working out a LaTeX formula might take without bound. Errs on the side of yes."""
    if len(formula) > _MAX_FORMULA or _UNBOUNDED.search(formula) or re.search(rf"\d{{{_MAX_DIGITS}}}", formula):
        return True
    largest, of_groups = 1, 1
    powers = list(_POWER.finditer(formula))
    if len(powers) != formula.count("^") + formula.count("**"):
        return True  # a power within an exponent, or one that this reading does not understand
    for power in powers:
        exponent = _EXPONENT.fullmatch(power["inside"] if power["bare"] is None else power["bare"])
        if exponent is None:
            return True
        size = int(exponent[1] or 1)
        if power["group"]:
            of_groups *= max(1, size)
        else:
            largest = max(largest, size)
    if re.search(r"[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", formula)):
        return largest > _MAX_EXPONENT or of_groups > _MAX_EXPANSION
    return largest * of_groups > _MAX_VALUE_EXPONENT


def _symbolically_equal(answer: str, reference: str) -> bool:
    from math_verify import parse, verify  # sympy takes a second to import; most answers are plain numbers

    # math-verify's own time limits are signals, which work in the main thread alone; the caller's deadline takes their place.
    target = parse(f"\\boxed{{{answer}}}", parsing_timeout=None)
    gold = parse(f"\\boxed{{{reference}}}", parsing_timeout=None)
    return bool(target and gold and verify(gold, target, timeout_seconds=None))
