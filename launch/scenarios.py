"""`safeladder scenarios`: value scenarios from principles, by templates and by a model where one is named."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safeladder.launch.tasks import line
from safeladder.protocol.messages import Sampling
from safeladder.verifiers.training.scenarios import Language, Leaf, Writer, ask_for_scenarios, generate, tree


@dataclass(frozen=True)
class Request:
    """What the command line asked for. model: None, or what `policy.model` takes."""

    principles: Path
    language: Language
    count: int
    output: Path
    model: str | None = None
    cache: Path | None = None
    engine: str = "transformers"
    per_rule: int = 2
    max_new_tokens: int = 160
    seed: int = 0


def scenarios(request: Request) -> tuple[int, int]:
    """Writes the records; returns how many, and of how many leaves. Raises ScenarioError, ModelError."""
    leaves = tree(request.principles, request.language)
    write = _model_writer(request) if request.model else None
    records = generate(leaves, request.language, request.count, request.seed, write)
    request.output.write_bytes(b"".join(line(record) for record in records))
    return len(records), len({record.category for record in records})


def _model_writer(request: Request) -> Writer:
    """A function from a leaf and its rules to prompts that the model wrote, all rules of one call at once."""
    from safeladder.policies import model as models
    from safeladder.policies.engines.registry import create

    assert request.model is not None
    folder = models.resolve(request.model, request.cache)
    tokenizer = models.load_tokenizer(folder)

    async def draw(asked: Sequence[str], seed: int) -> list[str]:
        engine = create(request.engine, folder)
        await engine.start()
        try:
            sampling = Sampling(
                max_new_tokens=request.max_new_tokens, samples=request.per_rule, temperature=0.9, top_p=0.95, seed=seed
            )
            ids = [models.encode_prompt(tokenizer, text) for text in asked]
            async with asyncio.timeout(60.0 * max(1, len(asked))):
                found = await asyncio.gather(*(engine.generate(each, sampling) for each in ids))
        finally:
            await engine.stop()
        return [tokenizer.decode(each.token_ids, skip_special_tokens=True) for group in found for each in group]

    def write(asked: Sequence[tuple[Leaf, str]]) -> list[tuple[Leaf, str, str]]:
        texts = asyncio.run(draw([ask_for_scenarios(rule, request.language) for _, rule in asked], request.seed))
        owners = [owner for owner in asked for _ in range(request.per_rule)]
        return [
            (leaf, rule, line) for (leaf, rule), text in zip(owners, texts, strict=True) for line in questions(text)
        ]

    return write


def questions(text: str) -> list[str]:
    """The lines of a model's answer that are questions, their numbering taken off."""
    bare = (re.sub(r"^\s*(?:[-*•]|\d+[.)、])\s*", "", line).strip() for line in text.splitlines())
    return [line for line in bare if line.endswith(("?", "？")) and 12 <= len(line) <= 400]
