"""One question, one search, one answer: what the searcher does with a call, and the gateway with a request.

The strategy and the budget come from the question, what it leaves open from the options. The context router weighs the dimensions. The
process that calls this decides what blocks it: see `pools.py`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from safeladder.actors.pools import Asked, Caller, PoolJudge, PoolSampler
from safeladder.actors.trajectories import PoolRetriever, PoolTurnSampler
from safeladder.launch.config import Config, ConfigError
from safeladder.policies.search import context, registry
from safeladder.policies.search.base import Limits, Problem, Result
from safeladder.policies.search.budget import Budget
from safeladder.policies.search.deliberate import answers
from safeladder.policies.search.deliberate.answers import Answering, DeliberateOptions
from safeladder.policies.search.deliberate.trajectory import Encode, Language, instruction
from safeladder.policies.search.scoring import Combination
from safeladder.policies.search.tree import Node
from safeladder.protocol import messages as m
from safeladder.protocol.transport import Link
from safeladder.verifiers.rules.match import normalise


@dataclass
class DeliberationOptions:
    """How questions are answered where they do not say it themselves.

    generator: the queue that draws. judges: the queues whose verifiers judge, in order. dimensions: what is judged -> verifier;
    empty: safety alone (a default here would be added to what a file names, not replaced by it).
    weights: dimension -> weight; empty: those of the question's context. strategy, options: of `policies/search`.
    aggregation, prior, veto: see `policies/search/scoring.py`. delimiters: strings that end a step. tokens, calls, seconds: the most
    that a question may spend. deadline_s: of one call to a pool. fallback: said when no answer may be given. retriever: the queue that
    searches, for the strategy `deliberate`, whose options are `deliberate`; abstention: said when it is not certain enough.
    """

    generator: str = "generator"
    judges: list[str] = field(default_factory=lambda: ["safety"])
    dimensions: dict[str, str] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    strategy: str = "best_of_n"
    options: dict[str, Any] = field(default_factory=dict)
    aggregation: Literal["min", "last", "product"] = "last"
    prior: float = 0.0
    veto: float = 0.1
    delimiters: list[str] = field(default_factory=lambda: ["\n\n"])
    step_tokens: int = 64
    max_steps: int = 16
    tokens: int | None = 8192
    calls: int | None = 200
    seconds: float | None = 120.0
    deadline_s: float = 120.0
    fallback: str = "I cannot give an answer to this that my verifiers accept."
    retriever: str = "retriever"
    deliberate: DeliberateOptions = field(default_factory=DeliberateOptions)
    abstention: str = "I am not certain enough of an answer to this."

    def __post_init__(self) -> None:
        self.dimensions = self.dimensions or {"safety": "safety"}


@dataclass(frozen=True)
class Answered:
    """An answer with the search that it came from: `asked` holds the prompt's tokens, once a generator has said them."""

    question: m.Question
    answer: m.Answer
    result: Result
    asked: Asked


class Deliberation:
    """Answers questions over the pools of a run. One for a process; any number of questions at once."""

    def __init__(self, options: DeliberationOptions, config: Config, link: Link, tokenizer: Any = None) -> None:
        """`tokenizer`: a `tokenizers.Tokenizer`, for what strategies put into an answer; without one that is refused."""
        self.options, self._config, self._link, self._tokenizer = options, config, link, tokenizer
        try:
            if options.strategy == registry.DELIBERATE:
                answers.options_of(options.deliberate, options.options)
            else:
                registry.create(options.strategy, options.options)
        except registry.UnknownStrategy as error:
            raise ConfigError(str(error)) from error

    async def answer(
        self, name: str, question: m.Question, lane: m.Lane = "interactive", watch: Callable[[Node], None] | None = None
    ) -> m.Answer:
        """Searches as `question` says; `watch` as in `search`. Raises UnknownStrategy for a strategy or options that there are
        not, and CallError when the pools do not answer."""
        return (await self.answered(name, question, lane, watch)).answer

    async def answered(
        self,
        name: str,
        question: m.Question,
        lane: m.Lane = "interactive",
        watch: Callable[[Node], None] | None = None,
        asked: Asked | None = None,
        gate: float = 0.0,
    ) -> Answered:
        """`answer` with its search. `asked`, `gate`: as in `search`."""
        asked = asked or self.asked(name, question)
        result, kind = await self.search(name, question, lane, watch, asked, gate)
        chosen, strategy = result.chosen, question.strategy or self.options.strategy
        deliberated = strategy == registry.DELIBERATE
        if chosen is not None:
            text, note = ("" if deliberated else question.begun) + (result.text or ""), None
        elif deliberated:
            text, note = self.options.abstention if result.answers else self.options.fallback, result.ended
        else:
            text, note = self.options.fallback, "no candidate was accepted by every verifier"
        answer = m.Answer(
            text=text,
            strategy=strategy,
            candidates=candidates(result),
            seconds=round(result.spent.seconds, 3),
            note=note,
            tree=result.tree.record(),
            notes=[dataclasses.asdict(note) for note in result.notes],
            spent={
                "tokens": result.spent.tokens,
                "calls": result.spent.calls,
                "seconds": round(result.spent.seconds, 3),
                "prompt_tokens": len(asked.token_ids or ()),
            },
            ended=result.ended,
            context=kind,
            confidence=result.confidence,
            sources=result.sources,
        )
        return Answered(question, answer, result, asked)

    async def search(
        self,
        name: str,
        question: m.Question,
        lane: m.Lane = "interactive",
        watch: Callable[[Node], None] | None = None,
        asked: Asked | None = None,
        gate: float = 0.0,
        min_version: int = 0,
    ) -> tuple[Result, str]:
        """The search itself, with the context that weighed it. `watch` is called with each node that was judged. `asked`: what
        `self.asked` made of this question, for a caller who wants to look at it afterwards. `gate`: a veto above the options' own.
        `min_version`: the oldest weights that may draw."""
        options, language = self.options, language_of(question.text)
        routed = context.route(question.text)
        weights = options.weights or context.among(routed.weights, set(options.dimensions))
        caller = Caller(self._link, lane, options.deadline_s)
        combination = Combination(weights, options.aggregation, options.prior, max(options.veto, gate))
        budget = Budget(
            _least(question.tokens, options.tokens),
            _least(question.calls, options.calls),
            _least(question.seconds, options.seconds),
        )
        if (question.strategy or options.strategy) == registry.DELIBERATE:
            return await self._deliberate(name, question, caller, combination, budget, watch), routed.kind
        strategy = registry.create(*self._strategy(question, language))
        problem = Problem(asked or self.asked(name, question), question.seed, encode=self._encode)
        result = await strategy.search(
            problem,
            PoolSampler(caller, options.generator, options.delimiters, question.temperature, min_version),
            PoolJudge(caller, options.judges, options.dimensions),
            combination=combination,
            budget=budget,
            limits=Limits(
                min(options.step_tokens, question.max_new_tokens), question.max_new_tokens, options.max_steps
            ),
            watch=watch,
        )
        return result, routed.kind

    async def _deliberate(
        self,
        name: str,
        question: m.Question,
        caller: Caller,
        combination: Combination,
        budget: Budget,
        watch: Callable[[Node], None] | None,
    ) -> Result:
        """Searches and reads, with votes of several trajectories. An answer is judged as what it says, without its trajectory."""
        options = self.options
        given = {"samples": question.candidates} | (options.options if options.strategy == registry.DELIBERATE else {})
        chosen = answers.options_of(options.deliberate, given | question.options)
        chosen.turn_tokens = min(chosen.turn_tokens, question.max_new_tokens)
        language = language_of(question.text)
        asked = self.asked(name, question)
        asked.system = instructed(asked.system, language)
        answering = Answering(
            PoolTurnSampler(caller, options.generator, m.Sampling(temperature=question.temperature)),
            PoolRetriever(caller, options.retriever, name),
            self.environment_encoder(),
            normalise,
            PoolJudge(caller, options.judges, options.dimensions) if options.judges else None,
            combination,
            watch,
        )
        return await answering.answer(
            asked,
            chosen,
            budget,
            question.seed,
            opening=self._config.policy.prefix,
            begun=question.begun,
            language=language,
            judged=Asked(name, asked.record, asked.system),
        )

    def environment_encoder(self) -> Encode:
        """Token ids of what an environment writes: a special token spelled out in it stays text. Raises ConfigError."""
        if self._tokenizer is None:
            raise ConfigError("deliberation needs the policy's tokenizer.json, to write search results")
        own = copy.deepcopy(self._tokenizer)
        own.encode_special_tokens = True

        def encode(text: str) -> Sequence[int]:
            ids: list[int] = own.encode(text, add_special_tokens=False).ids
            return ids

        return encode

    def _strategy(self, question: m.Question, language: str) -> tuple[str, Mapping[str, Any]]:
        name = question.strategy or self.options.strategy
        chosen = {**(self.options.options if name == self.options.strategy else {}), **question.options}
        if name == "best_of_n":
            chosen.setdefault("n", question.candidates)
        if name == "intervene":
            chosen.setdefault("language", language)
        return name, chosen

    def asked(self, name: str, question: m.Question) -> Asked:
        """The question as the pools know it, its works named after `name`."""
        language = language_of(question.text)
        extra: dict[str, Any] = {"turns": msgspec.to_builtins(question.turns)} if question.turns else {}
        if question.images:
            extra["images"] = question.images
        record = m.Record(id=name, label="question", prompt=question.text, language=language, extra=extra)
        policy = self._config.policy
        return Asked(name, record, question.system or policy.system, policy.prefix + question.begun)

    def _encode(self, text: str) -> Sequence[int]:
        if self._tokenizer is None:
            raise ConfigError("a strategy that writes into the answer needs the policy's tokenizer.json")
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def candidates(result: Result) -> list[m.Candidate]:
    """Every complete answer, the chosen one first, then by score, then those that may not be given."""
    finals = [node for node in result.tree if node.fate == "final" or (node.step.final and not node.eligible)]

    def order(node: Node) -> tuple[bool, float]:
        return node is not result.chosen, -(node.score if node.eligible and node.score is not None else float("-inf"))

    return [
        m.Candidate(
            result.said(node),
            node.score if node.eligible else None,
            None if node.fate == "final" else node.fate,
            min((each.step.version for each in result.tree.path(node) if each.step.own), default=0),
        )
        for node in sorted(finals, key=order)
    ]


def instructed(system: str | None, language: Language) -> str:
    """The system message with the grammar of deliberation under it."""
    return "\n\n".join(filter(None, [system, instruction(language)]))


def tokenizer_of(model: Path) -> Any:
    """The fast tokenizer of a model folder, read without torch; None where it has none."""
    from tokenizers import Tokenizer

    file = model / "tokenizer.json"
    return Tokenizer.from_file(str(file)) if file.exists() else None


def language_of(text: str) -> Language:
    """zh where more than a third of the letters are Chinese, else en."""
    letters = [character for character in text if character.isalpha()]
    chinese = sum("一" <= character <= "鿿" for character in letters)
    return "zh" if letters and chinese * 3 > len(letters) else "en"


def _least(*values: Any) -> Any:
    return min((value for value in values if value is not None), default=None)
