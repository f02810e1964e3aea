"""Reference: log-probabilities of what was generated under the frozen first policy.

Inbox: groups with `prompt_ids`, `lengths`, `completion_ids`. Outbox: the same with `reference_logprobs`. Blocks on nothing but its own
model. Its weights never change, so a replica may be killed and replaced at any time.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from safeladder.actors.actor import Actor, Delivery, Output, Reject
from safeladder.actors.image_source import ImageSource
from safeladder.protocol.images import has_images


class Reference(Actor):
    """Scores completions with the policy that the run began with."""

    role = "reference"

    @dataclass
    class Options:
        """`model`: another reference than the run's first policy. `token_budget`: tokens in one packed forward."""

        model: str | None = None
        token_budget: int = 1024

    async def start(self) -> None:
        from safeladder.policies import model as models
        from safeladder.policies.vision import Gallery, Processor

        policy = self.config.policy
        path = await asyncio.to_thread(
            models.resolve, self.options.model or policy.model, policy.cache and Path(policy.cache)
        )
        self._model, tokenizer = await asyncio.to_thread(models.load, path, policy.dtype, self.context.pool.device)
        self._images = ImageSource(self)
        processor = await asyncio.to_thread(Processor.open, path, tokenizer)
        self._gallery = None if processor is None else Gallery(processor, self._images.store.read)

    def handle(self, delivery: Delivery) -> Output:
        """A group is scored by itself: what it is scored with must not show in the last bits of the result."""
        import torch

        from safeladder.policies.scoring import completion_logprobs

        group, arrays = delivery.group, delivery.arrays
        prompt, pictures = arrays["prompt_ids"].tolist(), []
        if has_images(group.record):
            if self._gallery is None:
                raise Reject(f"{group.record.id!r} has images, and the reference takes text only")
            pictures = self._gallery.of([each.hash for each in self._images.fetch(group.record)])
            prompt = self._gallery.processor.named(prompt, pictures)
        ends = np.cumsum(arrays["lengths"])[:-1]
        sequences = [(prompt, part.tolist()) for part in np.split(arrays["completion_ids"], ends)]
        with torch.inference_mode():
            scored = completion_logprobs(
                self._model,
                sequences,
                group.sampling.temperature or 1.0,
                self.options.token_budget,
                pictures={picture.name: picture for picture in pictures},
            )
        logprobs = torch.cat(scored).cpu().numpy().astype(np.float32)
        return Output(group, {**arrays, "reference_logprobs": logprobs})
