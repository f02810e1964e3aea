"""The interval of a share."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson(hits: int, rows: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a share `hits / rows` (Wilson 1927), in [0, 1]; (0, 1) where there are no rows.

    It is right near 0 and 1 too, where the textbook interval p +- z sqrt(p (1 - p) / n) has no width. Raises ValueError for
    counts that cannot be.
    """
    if not 0 <= hits <= rows:
        raise ValueError(f"{hits} hits of {rows} rows")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"a confidence lies between 0 and 1, not at {confidence}")
    if rows == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = hits / rows
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows)) / (1 + z * z / rows)
    # at the ends the formula is exact, its rounding is not
    return (0.0 if hits == 0 else max(0.0, middle - half)), (1.0 if hits == rows else min(1.0, middle + half))
