"""An engine that goes wrong when the file of `faulty_actors.py` says so. A module of its own: it imports torch."""

from __future__ import annotations

from collections.abc import Sequence

from faulty_actors import has

from safeladder.policies.engines.transformers_engine import TransformersEngine


class WrongEngine(TransformersEngine):
    """`wrong`: computes other probabilities than its weights say."""

    async def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], temperature: float = 1.0
    ) -> list[float]:
        found = await super().score(prompt_ids, completion_ids, temperature)
        return [value - 1.0 for value in found] if has("wrong") else found
