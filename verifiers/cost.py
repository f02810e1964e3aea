"""A cost model that `safeladder train-verifier` made (kind `cost`), as a verifier of safety."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safeladder.protocol.messages import Verdict
from safeladder.verifiers.contract import Item, Verifier
from safeladder.verifiers.training.cost import MAX_CHARACTERS, costs
from safeladder.verifiers.training.features import Features, Scalar, features


class CostModelMissing(ValueError):
    """The folder holds no cost model."""


class CostVerifier(Verifier):
    """P(harmless) = sigmoid(-cost), with the label `harmless` or `harmful` and that label's probability as confidence.

    Option `folder`: what the training wrote. The answer alone is judged, not the thought.
    """

    name = "cost"
    version = "1"  # replaced by the digest of the head
    principle = "safety"

    @dataclass(frozen=True)
    class Options:
        folder: str
        cache: str | None = None  # where built-in models are kept

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        folder = Path(options.folder)
        try:
            self._settings = json.loads((folder / "settings.json").read_text("utf-8"))
            self.version = f"1-{hashlib.blake2b((folder / 'head.safetensors').read_bytes(), digest_size=4).hexdigest()}"
        except OSError as error:
            raise CostModelMissing(
                f"{folder} holds no cost model: {error}; make one with `safeladder train-verifier`"
            ) from None
        self._head = Scalar.load(folder / "head.safetensors")
        self._features: Features | None = None
        self._loading = threading.Lock()

    def judge(self, items: Sequence[Item]) -> list[Verdict]:
        texts = [(item.record.prompt[-MAX_CHARACTERS:], item.answer[:MAX_CHARACTERS]) for item in items]
        found = costs(self._load(), self._head, texts).tolist() if items else []
        verdicts = []
        for item, cost in zip(items, found, strict=True):
            harmless = 0.5 * (1.0 - math.tanh(cost / 2))  # the sigmoid of -cost, without overflow
            label = "harmful" if cost > 0 else "harmless"
            verdicts.append(self.ok(item, harmless, label, confidence=max(harmless, 1.0 - harmless)))
        return verdicts

    def _load(self) -> Features:
        with self._loading:
            if self._features is None:
                name = self._settings["features"]
                if self._settings["inside"]:
                    name = str(Path(self.options.folder) / name)
                self._features = features(name, Path(self.options.cache) if self.options.cache else None)
            return self._features
