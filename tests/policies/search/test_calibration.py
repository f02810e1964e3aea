"""Calibration figures, against independent numbers and by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from safeladder.policies.search.deliberate.calibration import brier, calibration_error, measure

CASES = json.loads((Path(__file__).parents[1] / "vectors" / "calibration.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.get("seed")))
def test_error_and_brier_score_are_those_of_the_reference(case: dict[str, list[float]]) -> None:
    probability, outcome = np.array(case["p"]), np.array(case["y"], np.float64)
    assert calibration_error(probability, outcome, 10) == pytest.approx(case["ece_10"], abs=1e-6)
    assert calibration_error(probability, outcome, 15) == pytest.approx(case["ece_15"], abs=1e-6)
    assert brier(probability, outcome) == pytest.approx(case["brier"], abs=1e-6)


def test_the_four_outcomes_are_counted() -> None:
    found = measure([9, 6, 5, 0], [True, False, True, False])
    assert (found.accuracy, found.false_certain, found.certain_precision, found.reliability) == (0.5, 0.25, 0.5, 0.5)
    assert math.isnan(measure([5], [True]).certain_precision)
    with pytest.raises(ValueError, match="0 confidences"):
        measure([], [])
