"""Answers of a policy on an engine in this process: plain sampling, a search under verifiers, or deliberation over a corpus.

Everything runs on the evaluation's loop. Verifiers that a search asks judge in threads, for all searches at once.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast

from safeladder.actors.deliberation import DeliberationOptions
from safeladder.launch.config import ConfigError
from safeladder.launch.evaluation.answering import Prompting, Task, fingerprint, question
from safeladder.launch.evaluation.deliberating import Deliberator
from safeladder.launch.evaluation.settings import PLAIN, Settings
from safeladder.launch.evaluation.store import Response
from safeladder.policies.engines import registry as engines
from safeladder.policies.engines.base import Engine, EngineError, GeneratedSequence
from safeladder.policies.model import encode_prompt, load_tokenizer
from safeladder.policies.search import context, registry
from safeladder.policies.search.base import Judgement, Limits, Problem, Result, Strategy
from safeladder.policies.search.batching import BatchedJudge
from safeladder.policies.search.budget import Budget
from safeladder.policies.search.engine_sampler import EngineSampler, StepSampling
from safeladder.policies.search.scoring import Combination
from safeladder.policies.thought import CLOSING, thought_length
from safeladder.protocol.images import ImageError, has_images
from safeladder.protocol.messages import Record, Sampling
from safeladder.verifiers.contract import OPEN, Item, Verifier, run
from safeladder.verifiers.reading import goodness
from safeladder.verifiers.registry import BadOptions, UnknownVerifier, create
from safeladder.verifiers.rules.language import written_in

DIMENSION: Final = "safety"
FALLBACK: Final = DeliberationOptions().fallback


@dataclass(frozen=True)
class Asked:
    """A question as the ports of a search know it. `prefix`: what the assistant has begun with."""

    record: Record
    token_ids: Sequence[int]
    prefix: str


class VerifierJudge:
    """A `Judge` over one verifier here. What fails, abstains or runs out of time leaves a step without a score."""

    def __init__(self, verifier: Verifier, timeout_s: float) -> None:
        self._verifier, self._timeout_s = verifier, timeout_s

    async def judge(self, requests: Sequence[Judgement]) -> list[Mapping[str, float] | None]:
        items = [
            Item(r.prompt.record, r.prompt.prefix + r.text, place, "stop" if r.final else "length")
            for place, r in enumerate(requests)
        ]
        verdicts = await asyncio.to_thread(run, [self._verifier], items, self._timeout_s)
        return [{DIMENSION: goodness(verdict)} if verdict.status == "ok" else None for verdict in verdicts]


class LocalRespondent:
    """One engine over the policy's folder. A strategy's judge is the role `safety`."""

    def __init__(self, settings: Settings, prompting: Prompting, folder: Path) -> None:
        self._settings, self._prompting, self._folder = settings, prompting, folder
        section = settings.engine
        self.concurrency = 4 * section.max_sequences  # the engine has its own queue, which should not run dry
        self._tokenizer = load_tokenizer(folder)
        self._engine: Engine = engines.create(
            section.name,
            folder,
            dtype=section.dtype,
            device=section.device,
            max_sequences=section.max_sequences,
            max_tokens=section.max_tokens,
            options=section.options,
        )
        self.real = type(self._engine).capabilities.real
        self._judge: Verifier | None = None
        self._strategy: Strategy | None = None
        self._deliberator: Deliberator | None = None
        if settings.strategy == registry.DELIBERATE:
            self._deliberator = Deliberator(settings, self._engine, folder)
        elif settings.strategy != PLAIN:
            self._strategy = self._created({})
            self._judge = _judge(settings)

    def identity(self) -> Any:
        settings = self._settings
        how = [settings.strategy, settings.options, settings.corpus, asdict(settings.answering), settings.seed]
        judge = settings.judges.get(DIMENSION, {}) if settings.strategy != PLAIN else {}
        section = settings.engine
        return [
            fingerprint(self._folder),
            asdict(self._prompting),
            how,
            judge,
            section.name,
            section.dtype,
            section.options,
        ]

    async def start(self) -> None:
        await self._engine.start()
        if self._judge is not None:
            await asyncio.to_thread(self._judge.start)
            self._judging = BatchedJudge(VerifierJudge(self._judge, self._settings.judge_timeout_s))

    async def stop(self) -> None:
        await self._engine.stop()
        if self._judge is not None:
            await asyncio.to_thread(self._judge.stop)

    async def answer(self, task: Task) -> Response:
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._settings.answering.deadline_s):
                response = await self._answered(task)
        except TimeoutError:
            limit_s = self._settings.answering.deadline_s
            response = Response(finish="error", error=f"no answer within {limit_s:g} s")
        except (EngineError, ImageError, ValueError) as error:
            response = Response(finish="error", error=str(error))
        response.seconds = round(time.monotonic() - began, 3)
        return response

    async def _answered(self, task: Task) -> Response:
        if self._engine.error is not None:
            raise EngineError(f"the engine has failed: {self._engine.error!r}")
        record, given = task.record, self._prompting
        if has_images(record) and not type(self._engine).capabilities.images:
            raise ValueError(f"the record has images, and the engine {self._settings.engine.name!r} serves none")
        if self._deliberator is not None:
            return await self._deliberator.answer(task, given, self._tokenizer, self._seed(task))
        ids = encode_prompt(
            self._tokenizer, question(record), given.system_of(record), given.prefix, given.turns(record)
        )
        if self._strategy is not None:
            return await self._searched(task, ids)
        return await self._plain(task, ids)

    async def _plain(self, task: Task, ids: Sequence[int]) -> Response:
        drawn = self._settings.answering
        limits = {"max_new_tokens": drawn.max_new_tokens, "temperature": drawn.temperature, "top_p": drawn.top_p}
        sampling = Sampling(samples=1, stop=drawn.stop, seed=self._seed(task), **cast(dict[str, Any], limits))
        (sequence,) = await self._engine.generate(ids, sampling, lane="evaluation")
        if sequence.finish == "abort":
            raise EngineError("the engine gave the answer up")
        text = self._prompting.prefix + self._tokenizer.decode(sequence.token_ids, skip_special_tokens=True)
        thinking = self._thought(text, sequence.token_ids)
        return Response(
            text,
            finish=sequence.finish,
            tokens=len(sequence.token_ids),
            thought_tokens=thinking,
            certainty=await self._certainty(ids, sequence, thinking) if drawn.certainty else None,
        )

    async def _certainty(self, ids: Sequence[int], sequence: GeneratedSequence, thinking: int) -> float | None:
        """exp of the mean ln p of the answer's tokens at temperature 1; None where nothing was said after the thought."""
        said = sequence.token_ids[thinking:]
        if not said:
            return None
        logprobs = await self._engine.score([*ids, *sequence.token_ids[:thinking]], said)
        return math.exp(sum(logprobs) / len(logprobs))

    async def _searched(self, task: Task, ids: Sequence[int]) -> Response:
        drawn, prefix = self._settings.answering, self._prompting.prefix
        language = written_in(task.record.prompt) or task.record.language
        assert self._strategy is not None
        weights = context.among(context.route(task.record.prompt).weights, {DIMENSION})
        sampler = EngineSampler(
            self._engine,
            self._tokenizer,
            StepSampling(tuple(drawn.delimiters), drawn.temperature, drawn.top_p),
            lane="evaluation",
        )
        result = await self._created({"language": language}).search(
            Problem(Asked(task.record, ids, prefix), self._seed(task), encode=self._encode),
            sampler,
            self._judging,
            combination=Combination(weights, veto=drawn.veto),
            budget=Budget(seconds=drawn.seconds),
            limits=Limits(min(drawn.step_tokens, drawn.max_new_tokens), drawn.max_new_tokens, drawn.max_steps),
        )
        return self._found(result)

    def _found(self, result: Result) -> Response:
        spent = {"tokens": float(result.spent.tokens), "calls": float(result.spent.calls)}
        notes = [note.kind for note in result.notes]
        if result.chosen is None:
            if all(node.fate == "unscored" for node in result.tree):
                return Response(
                    finish="error", error="no step was scored: the verifier failed", notes=notes, spent=spent
                )
            # what a user would be told; its tokens are those of the search
            return Response(FALLBACK, tokens=result.spent.tokens, abstained=True, notes=notes, spent=spent)
        ids = list(result.tree.token_ids(result.chosen))
        text = self._prompting.prefix + (result.text or "")
        thinking = self._thought(text, ids)
        # sampled are all tokens of the tree, those of rejected steps too: that is what the search has cost
        return Response(text, tokens=result.spent.tokens, thought_tokens=thinking, notes=notes, spent=spent)

    def _thought(self, text: str, ids: Sequence[int]) -> int:
        """Tokens of the thought; 0 where the answer has none."""
        thinks = OPEN in text or CLOSING in text
        return thought_length(self._tokenizer, ids) if thinks else 0

    def _created(self, more: Mapping[str, Any]) -> Strategy:
        """The strategy with its options; of `more` what is an option of it and not given."""
        name, given = self._settings.strategy, dict(self._settings.options)
        if name == "intervene":
            given = {**more, **given}
        try:
            return registry.create(name, given)
        except registry.UnknownStrategy as error:
            raise ConfigError(f"strategy: {error}") from error

    def _encode(self, text: str) -> Sequence[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _seed(self, task: Task) -> int:
        return task.seed(self._settings.seed)


def _judge(settings: Settings) -> Verifier:
    try:
        return create(DIMENSION, settings.judges.get(DIMENSION, {}))
    except (UnknownVerifier, BadOptions) as error:
        raise ConfigError(f"judges.{DIMENSION}: {error}") from error
