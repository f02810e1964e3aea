"""What of an answer stands in the evidence: numbers for the `grounded` head, made of words alone, so that they hold in both languages.

All are shares or yes-or-no, so that an answer's length by itself says nothing. The choice is ours.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Final

FEATURES: Final = 16
_UNIT: Final = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:'[^\W\d_]+)?", re.UNICODE)
_CJK: Final = re.compile(r"[\u3400-\u9fff]")
_SENTENCE: Final = re.compile(r"(?<=[.!?])\s+|(?<=[a-z)\]\"][.!?])(?=[A-Z])|(?<=[。！？；])|\n+")
_NAME: Final = re.compile(r"(?<![.!?]\s)(?<!^)\b[A-Z][\w'’-]+")
_ASKS_NUMBER: Final = re.compile(
    r"\b(?:how (?:many|much|long|old|far|tall)|when|what (?:year|percent\w*|date)|which year)\b|多少|几|何时|哪一?年|哪年",
    re.IGNORECASE,
)
_NOT: Final = frozenset(["not", "no", "never", "neither", "nor", "n't", "不", "没", "无", "未", "非"])
_ENGLISH = (
    "a an the of in on at to for from by with and or is are was were be been has have had do does did that which who whom whose what when "
    "where how why it its this these those as than then there their his her he she they we you i not also into about over under after "
    "before during between"
)
_CHINESE = "的 了 是 在 和 与 有 为 以 于 及 这 那 个 一 中 上 下 被 由 对 从 到 什么 多少 哪 谁 何 吗 呢 他 她 它 们"
_STOP: Final = frozenset(f"{_ENGLISH} {_CHINESE}".split())


def units(text: str) -> list[str]:
    """Words and numbers in lower case; Chinese by single characters and by pairs of neighbours."""
    found: list[str] = []
    for match in _UNIT.finditer(text.casefold()):
        word = match.group()
        if not _CJK.search(word):
            found.append(word.replace(",", ""))
            continue
        found += list(word)
        found += [word[place : place + 2] for place in range(len(word) - 1)]
    return found


def features(question: str, evidence: str, answer: str) -> list[float]:
    """Sixteen numbers in [0, 1], or [-1, 1] for the eighth and the fourteenth."""
    asked = _content(question)
    said = units(answer)
    new = _content(answer) - asked
    known = set(units(evidence))
    sentences = [set(units(sentence)) for sentence in _SENTENCE.split(evidence) if sentence.strip()] or [set()]
    near = [_share(asked, sentence) for sentence in sentences]
    holding = [place for place, sentence in enumerate(sentences) if _share(new, sentence) >= 0.5]
    here = max((near[place] for place in holding), default=0.0)
    around = max((_share(asked, sentences[p] | sentences[max(0, p - 1)]) for p in holding), default=0.0)
    names = {name.casefold() for name in _NAME.findall(f". {answer}")} - set(units(question))
    numbers = {unit for unit in new if unit[0].isdigit()}
    flat_evidence, flat_answer = " ".join(units(evidence)), " ".join(said)
    negated = bool(_NOT.intersection(said)) and not _NOT.intersection(units(question))
    return [
        _share(new, known),
        _share(set(said), known),
        float(bool(flat_answer) and f" {flat_answer} " in f" {flat_evidence} "),
        _share(numbers, known),
        _share(names, known),
        float(not new),
        here,
        here - max(near),
        around,
        max((_share(new, sentence) for sentence in sentences), default=0.0),
        float(negated),
        float(not numbers and not names),
        *_nearness(question, evidence, answer),
        float(bool(_ASKS_NUMBER.search(question)) == any(c.isdigit() for c in answer)),
    ]


def _nearness(question: str, evidence: str, answer: str) -> tuple[float, float, float]:
    """How much of the question stands within 12 and within 30 words of the answer in the evidence, and how the first compares with the
    best place of all. A word weighs less the more often it stands in the evidence; the answer's own place is its rarest words."""
    line = _positions(evidence)
    counts = Counter(line)
    asked = {unit: 1.0 / counts[unit] for unit in _positions(question) if unit not in _STOP and unit in counts}
    said = [unit for unit in _positions(answer) if unit not in _STOP and unit not in asked and unit in counts]
    if not asked or not said:
        return 0.0, 0.0, 0.0
    weights = [asked.get(unit, 0.0) for unit in line]
    rare = min(counts[unit] for unit in said)
    wanted = {unit for unit in said if counts[unit] == rare}
    places = [place for place, unit in enumerate(line) if unit in wanted]
    near = max(_within(line, weights, place, 12) for place in places)
    wide = max(_within(line, weights, place, 30) for place in places)
    best = max(_within(line, weights, place, 12) for place in range(0, len(line), 4))
    total = sum(asked.values())
    return near / total, wide / total, max(-1.0, (near - best) / total)


def _within(line: list[str], weights: list[float], place: int, reach: int) -> float:
    """The weights of the distinct words around a place."""
    first = max(0, place - reach)
    around = dict(zip(line[first : place + reach + 1], weights[first:], strict=False))
    return sum(around.values())


def _positions(text: str) -> list[str]:
    """Words, numbers and single Chinese characters in their order."""
    found: list[str] = []
    for match in _UNIT.finditer(text.casefold()):
        word = match.group()
        found += list(word) if _CJK.search(word) else [word.replace(",", "")]
    return found


def _content(text: str) -> set[str]:
    return {unit for unit in units(text) if unit not in _STOP}


def _share(part: Iterable[str], whole: set[str]) -> float:
    """How much of `part` is in `whole`; 1 where there is nothing to look for."""
    listed = set(part)
    return len(listed & whole) / len(listed) if listed else 1.0
