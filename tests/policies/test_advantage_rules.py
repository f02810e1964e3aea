import json
import math
from pathlib import Path

import pytest
import torch

from safeladder.policies.advantages import ADVANTAGES, Scores, is_per_token

NAN = float("nan")


def of(rewards, lengths=None, **more):
    rewards = torch.tensor(rewards, dtype=torch.float64)
    lengths = torch.ones_like(rewards) if lengths is None else torch.tensor(lengths)
    return Scores(rewards, torch.ones(len(rewards), dtype=torch.bool), lengths=lengths, **more)


def test_cpgd_weights():
    batch = [of([1.0, 0.0, 0.0, 0.0]), of([2.0, 2.0]), of([0.5, 0.5]), of([3.0, 1.0])]
    plain, scaled = ADVANTAGES["cpgd"](batch, weight="equal"), ADVANTAGES["cpgd"](batch, weight="clip_filter")
    torch.testing.assert_close(plain, ADVANTAGES["dr_grpo"](batch))
    torch.testing.assert_close(ADVANTAGES["cpgd"](batch), ADVANTAGES["grpo"](batch))
    torch.testing.assert_close(scaled, [2 * row for row in plain])  # four prompts, two of them with spread
    capped = ADVANTAGES["cpgd"](batch[1:3] * 4 + batch[:1], weight="clip_filter", cap=3.0)
    torch.testing.assert_close(capped[-1], 3 * plain[0])  # nine prompts, one with spread


def test_gdpo_hears_a_quiet_channel_as_loudly_as_a_loud_one():
    def batch(factor):
        quiet = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64) * factor
        return [of([0.0] * 4, channels={"loud": torch.tensor([0.0, 100.0, 0.0, 100.0]), "quiet": quiet})]

    (found,) = ADVANTAGES["gdpo"](batch(1.0))
    # Both terms are +-sqrt(3)/2; their sums -sqrt(3), 0, 0, sqrt(3) have standard deviation sqrt(2).
    expected = torch.tensor([-1.0, 0.0, 0.0, 1.0], dtype=torch.float64) * math.sqrt(3 / 2)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(ADVANTAGES["gdpo"](batch(0.25))[0], found, atol=1e-5, rtol=0)
    (against,) = ADVANTAGES["gdpo"](batch(-1.0))  # a negative weight is in the score's sign
    torch.testing.assert_close(against, found[[2, 3, 0, 1]], atol=1e-5, rtol=0)


def test_gdpo_puts_the_size_of_a_weight_back():
    channels = {"a": torch.tensor([0.0, 1.0, 0.0, 1.0]), "b": torch.tensor([0.0, 0.0, 2.0, 2.0])}
    (found,) = ADVANTAGES["gdpo"]([of([0.0] * 4, channels=channels, channel_weights={"b": -2.0})])
    # The sums are (-1 - 2, 1 - 2, -1 + 2, 1 + 2) times sqrt(3)/2.
    torch.testing.assert_close(found / found[2], torch.tensor([-3.0, -1.0, 1.0, 3.0]).double(), atol=1e-4, rtol=0)


def test_gdpo_gives_a_completion_without_a_score_neither_credit_nor_blame():
    channels = {"a": torch.tensor([0.0, 1.0, NAN]), "b": torch.tensor([NAN, NAN, 7.0])}
    (found,) = ADVANTAGES["gdpo"]([of([0.0, 0.0, 0.0], channels=channels)])
    assert found[2] == 0.0  # alone in b, absent from a
    assert found[1] == -found[0] > 0


def test_gdpo_does_not_see_the_order_in_which_its_channels_are_named():
    generator = torch.Generator().manual_seed(1)
    terms = {name: torch.rand(8, generator=generator, dtype=torch.float64) for name in "abcdef"}
    (found,) = ADVANTAGES["gdpo"]([of([0.0] * 8, channels=terms)])
    (other,) = ADVANTAGES["gdpo"]([of([0.0] * 8, channels=dict(reversed(terms.items())))])
    assert found.tolist() == other.tolist()


def test_gpg_makes_up_for_completions_without_gradient():
    batch = [of([1.0, 0.0]), of([1.0, 1.0, 1.0, 1.0])]
    torch.testing.assert_close(ADVANTAGES["gpg"](batch)[0], 3 * ADVANTAGES["dr_grpo"](batch)[0])
    torch.testing.assert_close(ADVANTAGES["gpg"](batch, count="nonzero")[0], 6 / 5 * ADVANTAGES["dr_grpo"](batch)[0])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gdpo", {}, "channels"),
        ("reinforce_plus_plus", {"beta": 0.1}, "'kl'"),
        ("gae", {}, "'values'"),
        ("cpgd", {"weight": "STD"}, "clip_filter"),
        ("gpg", {"count": "all"}, "nonzero"),
    ],
)
def test_what_an_estimator_needs_and_lacks_is_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        ADVANTAGES[name]([of([1.0, 0.0])], **options)


@pytest.mark.parametrize("name", ["opo", "reinforce_plus_plus_baseline", "reinforce_plus_plus"])
def test_an_estimator_that_counts_tokens_asks_for_them(name):
    with pytest.raises(ValueError, match="lengths"):
        ADVANTAGES[name]([Scores(torch.zeros(2), torch.ones(2, dtype=torch.bool))])


# ------------------------------------------------------------------------------------------- reference numbers

# vectors/advantages.json: made with verl 0.9.1, float64. Its gpg counts rewards that are not 0.
COLUMNS = {
    "grpo": ("grpo", {}),
    "grpo_nostd": ("dr_grpo", {}),
    "rloo": ("rloo", {}),
    "opo": ("opo", {}),
    "gpg": ("gpg", {"count": "nonzero"}),
    "reinforce_plus_plus_baseline": ("reinforce_plus_plus_baseline", {}),
    "reinforce_plus_plus": ("reinforce_plus_plus", {}),
}
CASES = json.loads((Path(__file__).parent / "vectors" / "advantages.json").read_text())["cases"]


@pytest.mark.parametrize("column", sorted(COLUMNS))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_values_equal_the_independent_implementation(case, column):
    name, options = COLUMNS[column]
    groups = sorted(set(case["groups"]))
    rows = [[row for row, member in enumerate(case["groups"]) if member == group] for group in groups]
    batch = [of([case["scores"][r] for r in members], [case["lengths"][r] for r in members]) for members in rows]
    for members, found in zip(rows, ADVANTAGES[name](batch, **options), strict=True):
        lengths = [case["lengths"][r] for r in members]
        expected = [
            torch.tensor(case["out"][column][r][:n], dtype=torch.float64) for r, n in zip(members, lengths, strict=True)
        ]
        tokens = found if is_per_token(ADVANTAGES[name]) else found.repeat_interleave(torch.tensor(lengths))
        torch.testing.assert_close(tokens, torch.cat(expected), atol=1e-6, rtol=1e-6)


def test_cpgd_equals_the_independent_implementation():
    # From siiRL 0.2.0, compute_cpgd_outcome_advantage, which works in float32.
    batch = [of([1.0, 0.0, 1.0]), of([0.5, 0.25, 0.0])]
    expected = {
        "std": [[0.577349246, -1.15469861, 0.577349246], [0.999995947, 0.0, -0.999995947]],
        "equal": [[0.333333313, -0.666666687, 0.333333313], [0.25, 0.0, -0.25]],
    }
    for weight, rows in expected.items():
        for found, row in zip(ADVANTAGES["cpgd"](batch, weight=weight), rows, strict=True):
            torch.testing.assert_close(found, torch.tensor(row, dtype=torch.float64), atol=1e-6, rtol=0)
