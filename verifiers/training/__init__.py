"""Training of verifiers. A kind is a module with a dataclass `Config` and a function `train(config: Config) -> HeldOut`.

`KINDS` is all that has to know of one; `safeladder train-verifier` reads its configuration strictly and calls it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# Named by path, so that asking for one imports that one alone.
KINDS: Final[Mapping[str, str]] = {
    "judge": "safeladder.verifiers.training.judge",
    "cost": "safeladder.verifiers.training.cost",
    "value_model": "safeladder.verifiers.training.value_model",
}
