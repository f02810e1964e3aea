"""The engines that need no environment of their own, held to what every engine must pass."""

from __future__ import annotations

import math
import threading
from typing import ClassVar

import pytest
import torch

pytest.register_assert_rewrite("conformance", "conformance_weights", "served")
from conformance import Conformance  # noqa: E402  # after the registration


class TestTransformers(Conformance):
    kind = "transformers"

    @pytest.fixture(autouse=True)
    def quiet(self, monkeypatch):
        """The crash is on purpose: it need not be printed."""
        monkeypatch.setattr(threading, "excepthook", lambda arguments: None)

    def crash(self, engine, own):
        with torch.no_grad():
            engine.model.model.norm.weight.fill_(math.nan)


class TestSimulated(Conformance):
    kind = "simulated"
    options: ClassVar = {"scale": 0.0}

    def crash(self, engine, own):
        engine.fail(RuntimeError("on purpose"))
