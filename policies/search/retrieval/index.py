"""BM25 over a corpus in memory (`bm25s`): title and text of every document, by `terms`.

The scores are Lucene's: sum over the query's terms of ln(1 + (N - n + 0.5) / (n + 0.5)) f / (f + k1 (1 - b + b l / mean l)). k1 = 0.9 and
b = 0.4 are Anserini's defaults, and on XQuAD better than 1.5 and 0.75.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import bm25s

from safeladder.policies.search.retrieval.documents import Document, Hit
from safeladder.policies.search.retrieval.terms import terms

Analyse = Callable[[str], list[str]]


class CorpusIndex:
    """An index over documents. Building and searching are work of the processor: an event loop calls them on a thread."""

    def __init__(
        self, documents: Sequence[Document], k1: float = 0.9, b: float = 0.4, analyse: Analyse = terms
    ) -> None:
        """Raises ValueError for parameters out of range, or documents without a single term."""
        if k1 < 0 or not 0 <= b <= 1:
            raise ValueError(f"k1 must be >= 0 and b in [0, 1], not {k1} and {b}")
        self._documents, self._analyse = list(documents), analyse
        found = [analyse(f"{document.title.replace('_', ' ')} {document.text}") for document in self._documents]
        self._known = {term for each in found for term in each}
        if not self._known:
            raise ValueError("there is no term in any document")
        self._index = bm25s.BM25(k1=k1, b=b, method="lucene")
        self._index.index(found, show_progress=False)

    def __len__(self) -> int:
        return len(self._documents)

    def search(self, queries: Sequence[str], count: int) -> list[list[Hit]]:
        """For each query at most `count` documents that share a term with it, best first; of equal scores the earlier one first."""
        return [self._one(query, count) for query in queries]

    def _one(self, query: str, count: int) -> list[Hit]:
        asked = [term for term in self._analyse(query) if term in self._known]
        if not asked:
            return []
        scores = self._index.get_scores(asked)
        best = (-scores).argsort(kind="stable")[: max(0, count)]
        return [Hit(self._documents[place], float(scores[place])) for place in best.tolist() if scores[place] > 0]
