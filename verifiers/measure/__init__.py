"""How good verdicts are: pure functions on labels, scores and probabilities. Import no torch, read no file."""

from safeladder.verifiers.measure.agreement import McNemar, cohen_kappa, mcnemar
from safeladder.verifiers.measure.calibration import (
    brier_score,
    calibration_error,
    calibration_error_by_mass,
    log_loss,
    maximum_calibration_error,
)
from safeladder.verifiers.measure.classification import (
    Confusion,
    accuracy,
    confusion,
    f1,
    macro_f1,
    matthews,
)
from safeladder.verifiers.measure.intervals import wilson
from safeladder.verifiers.measure.length import LengthBias, accuracy_matched, auroc_matched, length_bias
from safeladder.verifiers.measure.ranking import Numbers, auroc, average_precision, spearman
from safeladder.verifiers.measure.slices import Decisions, Figures, figures, share, slices

__all__ = [
    "Confusion",
    "Decisions",
    "Figures",
    "LengthBias",
    "McNemar",
    "Numbers",
    "accuracy",
    "accuracy_matched",
    "auroc",
    "auroc_matched",
    "average_precision",
    "brier_score",
    "calibration_error",
    "calibration_error_by_mass",
    "cohen_kappa",
    "confusion",
    "f1",
    "figures",
    "length_bias",
    "log_loss",
    "macro_f1",
    "matthews",
    "maximum_calibration_error",
    "mcnemar",
    "share",
    "slices",
    "spearman",
    "wilson",
]
