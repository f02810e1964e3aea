"""Class balance: the classes of each cell (language, source) weigh the same, or are cut to the same size."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence


def weights(classes: Sequence[Hashable], cells: Sequence[Hashable]) -> list[float]:
    """A weight for each row, of mean 1: within a cell every class weighs the same, and a cell weighs as its rows."""
    size, of_cell = Counter(zip(cells, classes, strict=True)), Counter(cells)
    kinds = Counter(cell for cell, _ in size)
    return [of_cell[cell] / (kinds[cell] * size[cell, kind]) for cell, kind in zip(cells, classes, strict=True)]


def downsampled(classes: Sequence[Hashable], cells: Sequence[Hashable], seed: int = 0) -> list[int]:
    """Indices of a subset, in order, in which each class of a cell is as large as the cell's smallest."""
    rows: dict[Hashable, dict[Hashable, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, (cell, kind) in enumerate(zip(cells, classes, strict=True)):
        rows[cell][kind].append(index)
    draw = random.Random(seed)
    kept: list[int] = []
    for by_class in rows.values():
        least = min(map(len, by_class.values()))
        for indices in by_class.values():
            kept += indices if len(indices) == least else draw.sample(indices, least)
    return sorted(kept)
