"""How sure the policy was of its answer. Ours: the paper names a penalty on low confidence and gives no formula for the confidence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from safeladder.protocol.messages import Group

CLOSE = "</think>"


def certainty(group: Group, arrays: Mapping[str, Any], sample: int) -> float | None:
    """exp of the mean ln p(token) over the answer's tokens, in (0, 1]; None where the group came without log-probabilities.

    The probabilities are those that the tokens were sampled with. No tokenizer is at hand here, so the answer's share of the
    completion's tokens is taken to be its share of the characters, counted from the end.
    """
    if "behaviour_logprobs" not in arrays or "lengths" not in arrays:
        return None
    lengths = arrays["lengths"]
    count, text = int(lengths[sample]), group.completions[sample].text
    if count == 0 or not text:
        return None
    answer = text.rpartition(CLOSE)[2]
    tokens = max(1, round(count * len(answer) / len(text)))
    end = int(lengths[: sample + 1].sum())
    return math.exp(min(0.0, float(arrays["behaviour_logprobs"][end - tokens : end].mean())))
