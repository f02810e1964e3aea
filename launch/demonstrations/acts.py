"""Cognitive diversity: what the sentences of a thought do, how varied that is, and a sample in which no kind of record dominates.

SafeWork-R1's paper names a cognitive diversity analysis and gives no method; the acts are those of our reading of it, and the rules that
find
them, the entropies and the caps are ours. A sentence has one act, the first below that fits; what fits none is `unmarked` and in no
entropy. Rules by words are coarse: they compare sets with one another, and say little of one thought.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from safeladder.protocol.messages import Record

UNMARKED: Final = "unmarked"

# in the order in which they are tried: the rarer and more telling first
ACTS: Final[Mapping[str, re.Pattern[str]]] = {
    name: re.compile(pattern, re.IGNORECASE)
    for name, pattern in {
        "backtrack": r"\b(wait|actually|on second thought|that was wrong|let me redo|mistake)\b|等等|不对|重新|其实",
        "verify": r"\b(check|verify|confirm|make sure|double-check)\b|检查|验证|核对|确认",
        "observe_image": r"\b(in|see|shown in|look at) the (image|picture|photo|diagram|figure)\b|图中|图片|照片",
        "consider_risk": r"\b(harm|danger|dangerous|risk|unsafe|illegal|hurt|wronged|crime)\w*|危险|伤害|违法|风险|犯罪",
        "consider_alternative": r"\b(alternatively|instead|another way|on the other hand|otherwise)\b|或者|另一种|相反|换个",
        "plan_response": r"\bI (will|should|can|must|need to) (not )?(help|answer|explain|refuse|give|warn|say)\b|\bI search\b"
        r"|我(会|应该|可以|不能|要)",
        "decompose": r"\b(first|then|next|step|split|of \d+ leave|gets \d+)\b|首先|然后|接着|分成|第[一二三]步",
        "deduce": r"\b(so|therefore|thus|hence|because|makes|equals|means)\b|所以|因此|因为|等于|得到",
        "recall": r"\b(is|are|was|were|has|have|looks?|drink|speak|painted)\b|是|有|知道|记得",
        "conclude": r"\b(answer|conclusion|result)\b|答案|结论",
    }.items()
}
_SENTENCE: Final = re.compile(r"[^.!?。！？\n]+[.!?。！？]*")

Cell = tuple[str, str, str]  # family, language, difficulty


def acts(thought: str) -> list[str]:
    """The act of each sentence, in order."""
    sentences = (match[0].strip() for match in _SENTENCE.finditer(thought))
    return [next((act for act, mark in ACTS.items() if mark.search(s)), UNMARKED) for s in sentences if s]


def entropy(counts: Mapping[str, int]) -> float:
    """Shannon's, in bits, of the shares of the marked acts; 0 where there are none. At most log2 of the number of acts, 3.32."""
    marked = [count for act, count in counts.items() if act != UNMARKED and count]
    total = sum(marked)
    return -math.fsum(count / total * math.log2(count / total) for count in marked) if total else 0.0


def cell(record: Record, thought: str) -> Cell:
    """What is to be balanced. Difficulty: as the record's extra says, else by the sentences of the thought: one, two or three, more."""
    stated = record.extra.get("difficulty")
    count = len(acts(thought))
    measured = "short" if count <= 1 else "medium" if count <= 3 else "long"
    return record.label, record.language, str(stated) if stated is not None else measured


@dataclass(frozen=True)
class Diversity:
    """acts: how often each occurs. entropy: over the whole corpus; mean_entropy: of a record. coverage: acts that occur / all acts.
    cells: "family/language/difficulty" -> records, entropy, coverage."""

    acts: dict[str, int]
    entropy: float
    mean_entropy: float
    coverage: float
    cells: dict[str, dict[str, float]]

    @classmethod
    def of(cls, records: Sequence[Record], thoughts: Sequence[str]) -> Diversity:
        found = [Counter(acts(thought)) for thought in thoughts]
        whole: Counter[str] = sum(found, Counter())
        by_cell: dict[str, list[Counter[str]]] = {}
        for record, thought, counts in zip(records, thoughts, found, strict=True):
            by_cell.setdefault("/".join(cell(record, thought)), []).append(counts)
        cells = {}
        for name, parts in sorted(by_cell.items()):
            together: Counter[str] = sum(parts, Counter())
            cells[name] = {
                "records": len(parts),
                "entropy": round(entropy(together), 4),
                "coverage": _coverage(together),
            }
        mean = math.fsum(map(entropy, found)) / len(found) if found else 0.0
        ordered = {act: whole[act] for act in [*ACTS, UNMARKED] if whole[act]}
        return cls(ordered, round(entropy(whole), 4), round(mean, 4), _coverage(whole), cells)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "acts": self.acts,
            "entropy_bits": self.entropy,
            "mean_entropy_bits": self.mean_entropy,
            "coverage": self.coverage,
            "cells": self.cells,
        }


def _coverage(counts: Mapping[str, int]) -> float:
    return round(sum(1 for act in ACTS if counts.get(act)) / len(ACTS), 4)


def capped(cells: Sequence[Cell], entropies: Sequence[float], cap: float) -> list[int]:
    """Indices, in order, of a subset in which no cell has more than the share `cap` in (0, 1] of the whole; of a cell too large those
    with the
    higher entropy stay, the earlier of equals. A cap that the number of cells cannot meet is met as nearly as it can be: cells are cut
    to one size, and none to less than one record.
    """
    sizes = Counter(cells)
    limit = max(sizes.values(), default=0)
    while limit > 1 and limit > cap * sum(min(size, limit) for size in sizes.values()):
        limit -= 1
    kept: list[int] = []
    for name in sizes:
        own = [index for index, each in enumerate(cells) if each == name]
        own.sort(key=lambda index: (-entropies[index], index))
        kept += own[:limit]
    return sorted(kept)
