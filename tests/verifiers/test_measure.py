"""The metrics: against published packages (vectors/calibration.json says which), and what holds whatever the rows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeladder.verifiers import measure

CASES = json.loads((Path(__file__).parent / "vectors" / "calibration.json").read_text())["cases"]

rows = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 20)), min_size=1, max_size=60)


def columns(pairs: list[tuple[int, int]]) -> tuple[measure.Numbers, measure.Numbers]:
    """Truth and score; few distinct scores, so that ties are common."""
    return np.array([t for t, _ in pairs], float), np.array([s / 20 for _, s in pairs])


@pytest.mark.parametrize("case", CASES)
def test_published_packages_find_the_same_numbers(case: dict[str, Any]) -> None:
    truth, probability = np.array(case["y"], float), np.array(case["p"])
    found = {
        "ece_10": measure.calibration_error(truth, probability, 10),
        "mce_10": measure.maximum_calibration_error(truth, probability, 10),
        "ece_15": measure.calibration_error(truth, probability, 15),
        "mce_15": measure.maximum_calibration_error(truth, probability, 15),
        "brier": measure.brier_score(truth, probability),
        "auroc": measure.auroc(truth, probability),
        "average_precision": measure.average_precision(truth, probability),
        "log_loss": measure.log_loss(truth, probability),
        "f1_at_half": measure.f1(truth, probability),
        "mcc_at_half": measure.matthews(truth, probability),
    }
    # torchmetrics' calibration errors are float32
    assert found == pytest.approx({key: case[key] for key in found}, abs=1e-6)


def test_measures_agree_with_hand_counted_values() -> None:
    truth, probability = np.array([0.0, 0.0, 1.0, 1.0]), np.array([0.1, 0.5, 0.5, 0.9])
    assert measure.auroc(truth, probability) == pytest.approx(3.5 / 4)
    assert measure.accuracy(truth, probability) == 0.75
    assert measure.calibration_error(truth, probability) == pytest.approx((0.1 + 0.0 + 0.1) / 4)
    assert measure.average_precision(truth, probability) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # two bins of equal mass, the tie kept together in one of them
    assert measure.calibration_error_by_mass(truth, probability, 2) == pytest.approx((0.1 + 0.1) / 4)
    assert measure.cohen_kappa(list("aabb"), list("abbb")) == pytest.approx((0.75 - 0.5) / 0.5)
    assert measure.macro_f1(list("aabb"), list("abbb")) == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert measure.mcnemar([True] * 6 + [False], [False] * 6 + [True]) == measure.McNemar(6, 1, 2 * 8 / 128)


def test_at_matched_length_a_guess_by_length_is_right_in_half_of_the_cases() -> None:
    length = np.array([1.0, 1.0, 1.0, 9.0, 9.0, 9.0])
    truth = np.array([1.0, 1.0, 0.0, 0.0, 0.0, 1.0])
    by_length = np.where(length < 5, 0.9, 0.1)
    assert measure.accuracy(truth, by_length) == pytest.approx(4 / 6)
    assert measure.accuracy_matched(truth, by_length, length, 2) == 0.5
    assert measure.accuracy_matched(truth, truth, length, 2) == 1.0


def test_the_interval_is_the_published_one() -> None:
    # Newcombe (1998), table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    for hits, of, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert measure.wilson(hits, of) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(0, 300), st.integers(0, 300))
def test_the_interval_holds_its_share_and_mirrors(hits: int, misses: int) -> None:
    low, high = measure.wilson(hits, hits + misses)
    if hits + misses:
        assert 0 <= low <= hits / (hits + misses) <= high <= 1
    assert (1 - high, 1 - low) == pytest.approx(measure.wilson(misses, hits + misses))


@given(rows)
def test_the_area_is_the_share_of_pairs_in_the_right_order(pairs: list[tuple[int, int]]) -> None:
    truth, score = columns(pairs)
    up, down = score[truth == 1], score[truth == 0]
    area = measure.auroc(truth, score)
    if len(up) and len(down):
        assert area == pytest.approx(np.mean([(a > b) + (a == b) / 2 for a in up for b in down]))
        assert measure.auroc(1 - truth, score) == pytest.approx(1 - area)
    else:
        assert math.isnan(area)


@given(rows, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_no_figure(pairs: list[tuple[int, int]], shuffler: Any) -> None:
    before = measure.figures(*columns(pairs)).plain()
    shuffler.shuffle(pairs)
    after = measure.figures(*columns(pairs)).plain()
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert after[key] == (pytest.approx(value, abs=1e-12) if value is not None else None)


@given(rows)
def test_errors_of_calibration_lie_between_nothing_and_one_and_vanish_for_an_oracle(
    pairs: list[tuple[int, int]],
) -> None:
    truth, probability = columns(pairs)
    for error in (measure.calibration_error, measure.calibration_error_by_mass, measure.maximum_calibration_error):
        assert 0 <= error(truth, probability) <= 1 + 1e-12
        assert error(truth, truth) == pytest.approx(0, abs=1e-12)
    assert (
        measure.calibration_error(truth, probability) <= measure.maximum_calibration_error(truth, probability) + 1e-12
    )


@given(rows)
def test_agreement_is_symmetric_and_full_with_oneself(pairs: list[tuple[int, int]]) -> None:
    one, other = [a for a, _ in pairs], [int(b > 9) for _, b in pairs]
    assert measure.cohen_kappa(one, other) == pytest.approx(measure.cohen_kappa(other, one), nan_ok=True)
    if len(set(one)) > 1:
        assert measure.cohen_kappa(one, one) == pytest.approx(1)
    right, wrong = [bool(a) for a in one], [bool(b) for b in other]
    assert measure.mcnemar(right, wrong).p == measure.mcnemar(wrong, right).p <= 1


def test_the_rank_correlation_reads_order_alone() -> None:
    one = np.array([1.0, 2.0, 3.0, 4.0])
    assert measure.spearman(one, np.exp(one)) == pytest.approx(1)
    assert measure.spearman(one, -one) == pytest.approx(-1)
    assert math.isnan(measure.spearman(one, np.ones(4)))


def test_slices_hold_each_row_that_has_a_value_once() -> None:
    truth, probability = np.array([1.0, 0.0, 1.0, 0.0]), np.array([0.9, 0.2, 0.4, 0.6])
    found = measure.slices(
        truth, probability, {"language": ["en", "zh", "en", "zh"], "category": ["x", None, None, "x"]}
    )
    assert {column: {key: each.rows for key, each in parts.items()} for column, parts in found.items()} == {
        "language": {"en": 2, "zh": 2},
        "category": {"x": 2},
    }
    assert found["language"]["en"].caught[0] == 0.5
    assert found["language"]["en"].plain()["auroc"] is None  # one class alone
