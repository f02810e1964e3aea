"""docs/learning.md names every rule that there is, and the rule that it shows as the user's own works."""

import re
from pathlib import Path

import pytest
import torch

from safeladder.policies.advantages import ADVANTAGES
from safeladder.policies.corrections import FILTERS, WEIGHTS
from safeladder.policies.lengths import LENGTH_ADVANTAGES, LENGTH_REWARDS
from safeladder.policies.objectives import OBJECTIVES, Tokens

PAGE = (Path(__file__).parents[2] / "docs" / "learning.md").read_text("utf-8")


@pytest.mark.parametrize("registry", [ADVANTAGES, LENGTH_REWARDS, LENGTH_ADVANTAGES, OBJECTIVES, WEIGHTS, FILTERS])
def test_every_rule_is_on_the_page(registry):
    assert [name for name in registry if f"`{name}`" not in PAGE] == []


def test_the_rule_of_the_users_own_that_the_page_shows_works():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    space = {}
    exec(code, space)  # noqa: S102 - our own page
    logprobs = torch.tensor([-1.0], requires_grad=True)
    tokens = Tokens(logprobs, torch.tensor([-3.0]), torch.tensor([-3.0]), torch.ones(1), [1], torch.ones(1).bool())
    assert float(space["half_clipped"](tokens, high=0.5).detach()) == -1.5
