"""What an edit did, in numbers. **Ours**: the paper lets a person edit the thought and measures nothing of it.

distance    Levenshtein(before, after) / max(len(before), len(after)), in characters
locality    1 - distance(old continuation, new continuation): 1 where the rest was left alone, near 0 where all was rewritten
shifts      the distance of each step of the continuation from the one that stood in its place before
carried     share of the words that the edit brought in which the continuation takes up
style       cosine of the counts of character trigrams of the edit and of the continuation
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest

import numpy as np

from safeladder.policies.search.retrieval.terms import terms


def levenshtein(before: str, after: str) -> int:
    """The fewest insertions, deletions and substitutions of a character that make one text the other.

    A row of the table at a time. Its cells depend on their left neighbours, cell j = min(above j, cell j-1 + 1), which is a running
    minimum of (above j - j), plus j.
    """
    if len(before) < len(after):
        before, after = after, before
    columns = np.frombuffer(after.encode("utf-32-le"), np.uint32)
    places = np.arange(len(after) + 1)
    row = places
    for count, character in enumerate(before, 1):
        above = np.empty_like(row)
        above[0] = count
        above[1:] = np.minimum(row[1:] + 1, row[:-1] + (columns != ord(character)))
        row = np.minimum.accumulate(above - places) + places
    return int(row[-1])


def distance(before: str, after: str) -> float:
    """The normalised distance, in [0, 1]; 0 for two empty texts."""
    longer = max(len(before), len(after))
    return levenshtein(before, after) / longer if longer else 0.0


def locality(old: Sequence[str], new: Sequence[str]) -> float:
    """Of the steps after an edit, as they were and as they are; in [0, 1]."""
    return 1.0 - distance("".join(old), "".join(new))


def shifts(old: Sequence[str], new: Sequence[str]) -> list[float]:
    """By step of the longer continuation; 1 for a step that the other does not have, unless it is empty."""
    return [distance(before, after) for before, after in zip_longest(old, new, fillvalue="")]


def carried(before: str, after: str, continuation: str) -> float | None:
    """In [0, 1]; None for an edit that brought in no word."""
    brought = set(terms(after)) - set(terms(before))
    return len(brought & set(terms(continuation))) / len(brought) if brought else None


def style(edit: str, continuation: str) -> float:
    """In [0, 1]; 0 where either is shorter than three characters."""
    return cosine(_trigrams(edit), _trigrams(continuation))


def cosine(left: Counter[str], right: Counter[str]) -> float:
    """Of two bags of counts, in [0, 1]; 0 where one is empty."""
    shared = sum(count * right[key] for key, count in left.items())
    sizes = math.sqrt(sum(n * n for n in left.values())) * math.sqrt(sum(n * n for n in right.values()))
    return min(1.0, shared / sizes) if sizes else 0.0


def _trigrams(text: str) -> Counter[str]:
    folded = " ".join(text.casefold().split())
    return Counter(folded[at : at + 3] for at in range(len(folded) - 2))
