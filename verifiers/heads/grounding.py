"""What of an answer stands in the evidence: numbers for the `grounded` head, made of words alone, so that they hold in both languages.

All are shares or yes-or-no, so that an answer's length by itself says nothing. The choice is ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

FEATURES: Final = 12
_UNIT: Final = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:'[^\W\d_]+)?", re.UNICODE)
_CJK: Final = re.compile(r"[\u3400-\u9fff]")
_SENTENCE: Final = re.compile(r"(?<=[.!?])\s+|(?<=[a-z)\]\"][.!?])(?=[A-Z])|(?<=[。！？；])|\n+")
_NAME: Final = re.compile(r"(?<![.!?]\s)(?<!^)\b[A-Z][\w'’-]+")
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
    """Twelve numbers in [0, 1], or [-1, 1] for the eighth."""
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
    ]


def _content(text: str) -> set[str]:
    return {unit for unit in units(text) if unit not in _STOP}


def _share(part: Iterable[str], whole: set[str]) -> float:
    """How much of `part` is in `whole`; 1 where there is nothing to look for."""
    listed = set(part)
    return len(listed & whole) / len(listed) if listed else 1.0
