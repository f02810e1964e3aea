"""A principled value model that `safeladder train-verifier` made (kind `value_model`), as a process verifier for the searcher."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safeladder.protocol.messages import Verdict
from safeladder.verifiers.contract import Item, Verifier
from safeladder.verifiers.training.features import Features, Scalar, features
from safeladder.verifiers.training.value_model import values


class ValueModelMissing(ValueError):
    """The folder holds no value model, or none of that dimension."""


class ValueModelVerifier(Verifier):
    """V of one dimension, in (0, 1): the score that the final answer may expect, given all that was written so far.

    Options: `folder`, what the training wrote; `dimension`; `name`, what the verdicts are signed with, so that a pool may hold one for
    each dimension. The whole text is read, thought and answer: a prefix of it is what the searcher asks about. Its verdicts are
    about steps.
    """

    name = "value_model"
    version = "1"  # replaced by the digest of the head
    principle = "process"

    @dataclass(frozen=True)
    class Options:
        folder: str
        dimension: Literal["safety", "value", "knowledge"] = "safety"
        name: str | None = None
        cache: str | None = None  # where built-in models are kept

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.name = self.signature(options.name)
        folder = Path(options.folder)
        try:
            settings = json.loads((folder / "settings.json").read_text("utf-8"))
            self.version = f"1-{hashlib.blake2b((folder / 'head.safetensors').read_bytes(), digest_size=4).hexdigest()}"
        except OSError as error:
            raise ValueModelMissing(
                f"{folder} holds no value model: {error}; make one with `safeladder train-verifier`"
            ) from None
        if options.dimension not in settings["dimensions"]:
            raise ValueModelMissing(
                f"{folder} holds the dimensions {', '.join(settings['dimensions'])}, not {options.dimension}"
            )
        self._column = settings["dimensions"].index(options.dimension)
        self._name = settings["features"]
        self._head = Scalar.load(folder / "head.safetensors")
        self._features: Features | None = None
        self._loading = threading.Lock()

    @classmethod
    def signature(cls, name: str | None = None) -> str:
        return name or cls.name

    def judge(self, items: Sequence[Item]) -> list[Verdict]:
        if not items:
            return []
        found = values(self._load(), self._head, [(item.record.prompt, item.text) for item in items])
        return [
            self.ok(item, score, target="step")
            for item, score in zip(items, found[:, self._column].tolist(), strict=True)
        ]

    def _load(self) -> Features:
        with self._loading:
            if self._features is None:
                self._features = features(self._name, Path(self.options.cache) if self.options.cache else None)
            return self._features
