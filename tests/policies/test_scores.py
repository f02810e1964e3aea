import math

import pytest
import torch

from safeladder.policies.scores import Dense, Scores

NAN = float("nan")


def test_scores_that_do_not_fit_are_refused_by_name():
    three, valid = torch.zeros(3), torch.ones(3, dtype=torch.bool)
    wrong = [
        ("one entry a sample", {"rewards": three, "valid": valid[:2]}),
        ("bool", {"rewards": three, "valid": three}),
        ("floating point", {"rewards": three.int(), "valid": valid}),
        ("not finite", {"rewards": torch.tensor([1.0, NAN, 0.0]), "valid": valid}),
        ("channel tone", {"rewards": three, "valid": valid, "channels": {"tone": torch.zeros(2)}}),
        ("cost unsafe .* infinite", {"rewards": three, "valid": valid, "costs": {"unsafe": three + math.inf}}),
        ("thought_lengths", {"rewards": three, "valid": valid, "thought_lengths": torch.tensor([1, -1, 2])}),
        ("qualified", {"rewards": three, "valid": valid, "qualified": three}),
        ("dense columns", {"rewards": three, "valid": valid, "dense": Dense(values=[three, three])}),
        (
            "differ in shape",
            {"rewards": three, "valid": valid, "dense": Dense(values=[three] * 3, kl=[three, three, three[:1]])},
        ),
        ("tokens", {"rewards": three, "valid": valid, "lengths": three + 2, "dense": Dense(values=[three] * 3)}),
    ]
    for message, fields in wrong:
        with pytest.raises(ValueError, match=message):
            Scores(**fields)


def test_an_unknown_channel_or_cost_is_allowed():
    terms = {"tone": torch.tensor([NAN, 1.0])}
    assert Scores(torch.zeros(2), torch.ones(2, dtype=torch.bool), channels=terms, costs=terms).costs == terms
