"""Training of verifiers. A kind is a module with a dataclass `Config` and a function `train(config: Config) -> HeldOut`.

`KINDS` is all that has to know of one; `safeladder train-verifier` reads its configuration strictly and calls it. The embedded heads
(`heads`) are a kind with a reader and a report of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# Named by path, so that asking for one imports that one alone.
KINDS: Final[Mapping[str, str]] = {
    "heads": "safeladder.verifiers.training.heads",  # reads its own file: its paths are relative to it
    "judge": "safeladder.verifiers.training.judge",
    "cost": "safeladder.verifiers.training.cost",
    "value_model": "safeladder.verifiers.training.value_model",
}
