"""How much a thinking token's hidden state says of the answer, and where in a thought it says most: MI peaks.

The method is that of MI-Peaks (arXiv 2506.02867), which SafeWork-R1 uses to look for "safety aha" tokens. Mutual information is
estimated by normalised HSIC with a Gaussian kernel. As in the code of MI-Peaks the samples are the coordinates of the hidden state: the
estimate says how far the d numbers of one state can be told from the d numbers of the other, and it is one number a token.
It is a measure of dependence, in no unit, that is comparable between states of one width only. What counts as a peak is ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

BANDWIDTH: Final = 50.0
RIDGE: Final = 1e-5
REACH: Final = 1.5  # Tukey's fence


def hsic(x: Tensor, y: Tensor, bandwidth: float = BANDWIDTH, ridge: float = RIDGE) -> float:
    """Normalised HSIC of m paired samples x [m, d_x] and y [m, d_y]; a column [m] is taken for [m, 1].

    K_ij = exp(-|a_i - a_j|^2 / (2 bandwidth^2 d)),  G = H K H with H = I - 1/m,  R = G (G + ridge m I)^-1,
    HSIC = tr(R_x R_y): the estimate of NOCCO (Fukumizu et al. 2007, "Kernel measures of conditional dependence"), with the
    constants of MI-Peaks. There K is centred on one side only, which gives the same trace.

    It is >= 0, near 0 for independent samples where m is large against the rank that the kernel has above the ridge, symmetric in x
    and y, and does not see the order of the samples. Raises ValueError for columns of different lengths, or fewer than 2 samples.
    """
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(f"HSIC needs at least 2 paired samples, not {len(x)} and {len(y)}")
    return float((_projection(x, bandwidth, ridge) * _projection(y, bandwidth, ridge)).sum())


def trajectory(states: Tensor, answer: Tensor, bandwidth: float = BANDWIDTH, ridge: float = RIDGE) -> list[float]:
    """`hsic` of each of T hidden states [T, d] with the answer's representation [d], coordinates as samples."""
    if states.ndim != 2 or answer.shape != states.shape[1:]:
        raise ValueError(f"states must be [T, d] and answer [d], not {tuple(states.shape)} and {tuple(answer.shape)}")
    gold = _projection(answer, bandwidth, ridge)
    return [float((_projection(state, bandwidth, ridge) * gold).sum()) for state in states]


def _projection(x: Tensor, bandwidth: float, ridge: float) -> Tensor:
    """R [m, m], float64, symmetric."""
    points = x.double().reshape(len(x), -1)
    squares = points.square().sum(-1)
    distances = (squares[:, None] + squares[None] - 2 * points @ points.T).clamp(min=0.0)
    kernel = torch.exp(-distances / (2 * bandwidth**2 * points.shape[1]))
    centred = kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()
    unit = torch.eye(len(points), dtype=torch.float64)
    weight = ridge * len(points)
    # G (G + w I)^-1 = I - w (G + w I)^-1, and the bracket is positive definite
    return unit - weight * torch.cholesky_inverse(torch.linalg.cholesky(centred + weight * unit))


# -------------------------------------------------------------------------------------------------------------- peaks


def peaks(values: Sequence[float], reach: float = REACH) -> list[int]:
    """Positions above Q3 + reach (Q3 - Q1) of the thought's own values, Tukey's fence; in order.

    Nothing stands out among fewer than 4 values, or where all are equal.
    """
    if len(values) < 4:
        return []
    row = torch.tensor(values, dtype=torch.float64)
    low, high = torch.quantile(row, 0.25), torch.quantile(row, 0.75)
    fence = high + reach * (high - low)
    return torch.nonzero(row > fence).flatten().tolist()


@dataclass(frozen=True)
class TokenAtPeaks:
    """A token's text, how often it stands at a peak and how often at all, and how many times its share of peaks is that of all tokens."""

    token: str
    at_peaks: int
    of: int
    lift: float


def tokens_at_peaks(thoughts: Sequence[Sequence[str]], found: Sequence[Sequence[int]]) -> list[TokenAtPeaks]:
    """Which tokens stand at the peaks of some thoughts, the most frequent first; tokens are told apart by their text without spaces
    around it, in lower case."""
    everywhere = Counter(_word(token) for thought in thoughts for token in thought)
    at = Counter(_word(thought[place]) for thought, places in zip(thoughts, found, strict=True) for place in places)
    rate = sum(at.values()) / max(1, sum(everywhere.values()))
    rows = [
        TokenAtPeaks(token, n, everywhere[token], round(n / everywhere[token] / rate, 3)) for token, n in at.items()
    ]
    return sorted(rows, key=lambda row: (-row.at_peaks, -row.lift, row.token))


def _word(token: str) -> str:
    return token.strip().lower() or repr(token)
