"""Deliberation in this process: turns from the engine, documents from an index over the corpus files."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from safeladder.launch.config import ConfigError
from safeladder.launch.evaluation.answering import Prompting, Task, question
from safeladder.launch.evaluation.settings import Settings
from safeladder.launch.evaluation.store import Response
from safeladder.policies.engines.base import Engine, EngineError
from safeladder.policies.model import encode_prompt
from safeladder.policies.search.budget import Budget
from safeladder.policies.search.deliberate.answers import Answering, DeliberateOptions, options_of
from safeladder.policies.search.deliberate.grammar import MOST, parse_turn
from safeladder.policies.search.deliberate.trajectory import Language, Segment, TurnRequest, instruction
from safeladder.policies.search.registry import UnknownStrategy
from safeladder.policies.search.retrieval.documents import CorpusError, Hit, read
from safeladder.policies.search.tree import Node
from safeladder.protocol.messages import Sampling
from safeladder.verifiers.rules.language import written_in
from safeladder.verifiers.rules.match import normalise


@dataclass(frozen=True)
class Begun:
    """A question as the turn sampler knows it."""

    token_ids: tuple[int, ...]


class EngineTurns:
    """A `TurnSampler` over an engine."""

    def __init__(self, engine: Engine, tokenizer: Any, sampling: Sampling) -> None:
        self._engine, self._tokenizer, self._sampling = engine, tokenizer, sampling

    async def write(self, request: TurnRequest) -> Segment:
        sampling = msgspec.structs.replace(
            self._sampling, max_new_tokens=request.max_new_tokens, stop=list(request.stop), seed=request.seed
        )
        ids = [*request.prompt.token_ids, *request.token_ids]
        (sequence,) = await self._engine.generate(ids, sampling, lane="evaluation")
        if sequence.finish == "abort":
            raise EngineError("the engine gave a turn up")
        text = self._tokenizer.decode(sequence.token_ids, skip_special_tokens=True)
        return Segment(text, sequence.token_ids, sequence.logprobs, sequence.versions)


class CorpusRetriever:
    """A `Retriever` over an index in memory."""

    def __init__(self, paths: Sequence[str]) -> None:
        """Raises ConfigError for a corpus that cannot be read."""
        from safeladder.policies.search.retrieval.index import CorpusIndex

        if not paths:
            raise ConfigError("corpus: `deliberate` searches one or more files of documents, none is named")
        try:
            self._index = CorpusIndex(read([Path(path).expanduser() for path in paths]))
        except (CorpusError, ValueError) as error:
            raise ConfigError(f"corpus: {error}") from error

    async def search(self, queries: Sequence[str], count: int) -> list[list[Hit]]:
        return await asyncio.to_thread(self._index.search, queries, count)


class Deliberator:
    """The strategy `deliberate`: some trajectories, one vote."""

    def __init__(self, settings: Settings, engine: Engine, folder: Path) -> None:
        """Raises ConfigError for options that there are not, or a corpus that cannot be read."""
        from tokenizers import Tokenizer

        self._settings, self._engine = settings, engine
        try:
            self._options = options_of(DeliberateOptions(), settings.options)
        except UnknownStrategy as error:
            raise ConfigError(f"options: {error}") from error
        self._retriever = CorpusRetriever(settings.corpus)
        own = copy.deepcopy(Tokenizer.from_file(str(folder / "tokenizer.json")))
        own.encode_special_tokens = True  # what an environment writes holds no special token
        self._encode = lambda text: own.encode(text, add_special_tokens=False).ids

    async def answer(self, task: Task, given: Prompting, tokenizer: Any, seed: int) -> Response:
        language: Language = "zh" if (written_in(task.record.prompt) or task.record.language) == "zh" else "en"
        system = "\n\n".join(filter(None, [given.system_of(task.record), instruction(language)]))
        ids = encode_prompt(tokenizer, question(task.record), system, given.prefix, given.turns(task.record))
        drawn = self._settings.answering
        sampling = Sampling(temperature=drawn.temperature, top_p=drawn.top_p)
        turns = EngineTurns(self._engine, tokenizer, sampling)
        answering = Answering(turns, self._retriever, self._encode, normalise)
        result = await answering.answer(
            Begun(tuple(ids)),
            self._options,
            Budget(seconds=drawn.seconds),
            seed,
            opening=given.prefix,
            language=language,
        )
        ballots = [(result.answers.get(tip.number), round((tip.score or 0) * MOST)) for tip in _tips(result.tree)]
        looked = [_action(node, given.prefix) for node in result.tree if node.step.own]
        best = result.text
        if (
            best is None and result.answers
        ):  # abstained: what it would have said is judged, and that it did not say it is told
            best = max(ballots, key=lambda ballot: (ballot[0] is not None, ballot[1]))[0]
        return Response(
            best or "",
            tokens=result.spent.tokens,
            thought_tokens=None,
            confidence=result.confidence if result.answers else 0.0,
            abstained=result.chosen is None,
            ballots=ballots,
            notes=[note.kind for note in result.notes],
            spent={
                "calls": float(result.spent.calls),
                "searches": float(looked.count("search")),
                "reads": float(looked.count("read")),
            },
        )


def _tips(tree: Any) -> list[Node]:
    """The last node of each trajectory, in their order."""
    parents = {node.place[:-1] for node in tree}
    return sorted((node for node in tree if node.place not in parents), key=lambda node: node.place[0])


def _action(node: Node, opening: str) -> str | None:
    turn, _ = parse_turn(opening + node.step.text)
    return None if turn is None else turn.action
