"""What generative judges share: a model, a set of labels, templates by language, and the way from one to a verdict.

A judge asks its model and gets a *reading*: a label, and with restricted decoding every label's probability. What it makes of it
is its own. A reply that states no label is an error, never a score: the released judges give such replies 0 or 0.01.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec

from safeladder.protocol.images import has_images, images
from safeladder.protocol.messages import Verdict
from safeladder.verifiers import loop
from safeladder.verifiers.contract import Item, Verifier
from safeladder.verifiers.engines import EngineOptions, ModelUnavailable
from safeladder.verifiers.judges.labels import LabelSet
from safeladder.verifiers.judges.local import LocalModel
from safeladder.verifiers.judges.prompt import Message, Prompt, templates
from safeladder.verifiers.judges.remote import Remote, RemoteError, RemoteModel
from safeladder.verifiers.registry import BadOptions
from safeladder.verifiers.rules.words import chinese_share

Decoding = Literal["auto", "restricted", "free"]


class Unreadable(ValueError):
    """The judge's reply states no label, or several."""


@dataclass(frozen=True)
class JudgeOptions:
    """`model`: a folder, a hub id or a built-in name, run by `engine`; or `remote`, instead of both.

    name: what the verdicts are signed with, and so the name of the recipe's term; null: the judge's default. decoding: `restricted` to
    the labels, which gives probabilities and which an engine can do, or `free` and parsed; auto: as the model allows.
    language: of the template; auto: that of the question. max_new_tokens: of a free reply.
    """

    model: str | None = None
    engine: EngineOptions = field(default_factory=EngineOptions)
    remote: Remote | None = None
    name: str | None = None
    decoding: Decoding = "auto"
    language: Literal["auto", "en", "zh"] = "auto"
    max_new_tokens: int = 16

    def __post_init__(self) -> None:
        if (self.model is None) == (self.remote is None):
            raise ValueError(
                "a judge needs either `model`, which an engine runs here, or `remote`, a server that is asked"
            )
        if self.remote is not None and self.decoding == "restricted":
            raise ValueError("decoding `restricted` needs an engine: a remote judge's replies are parsed")
        if self.max_new_tokens < 1:
            raise ValueError("max_new_tokens must be at least 1")

    @property
    def restricted(self) -> bool:
        return self.remote is None and self.decoding != "free"


@dataclass(frozen=True)
class Reading:
    """What the model said. probabilities: label -> P among the labels, where decoding was restricted. logprobs: label -> ln P
    over the whole vocabulary, there too. said: the free reply, where there was one."""

    label: str
    probabilities: dict[str, float] | None = None
    logprobs: dict[str, float] | None = None
    said: str | None = None

    @property
    def confidence(self) -> float | None:
        return None if self.probabilities is None else min(1.0, self.probabilities[self.label])


class Judge(Verifier):
    """Base of the judges. A subclass sets `labels`, `template_file` and writes `judge_async`."""

    version = "1"  # of the class; an instance adds its model, options and templates
    labels: ClassVar[LabelSet]
    template_file: ClassVar[str] = ""
    Options: ClassVar[Any] = JudgeOptions

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.name = self.signature(options.name)
        self.version = f"{type(self).version}:{self._model_name()}:{self._digest()}"
        self._model = RemoteModel(options.remote) if options.remote else LocalModel(options.model, options.engine)

    def start(self) -> None:
        """Raises BadOptions when the model cannot be had or does not start."""
        try:
            loop.submit(self._model.start()).result()
        except (ModelUnavailable, RemoteError) as error:
            raise BadOptions(f"verifier {self.name!r}: {error}") from error

    def stop(self) -> None:
        loop.submit(self._model.stop()).result()

    @classmethod
    def signature(cls, name: str | None = None) -> str:
        return name or cls.name

    # -------------------------------------------------------------------------------------------------- for subclasses

    async def unsuited(self, item: Item) -> Verdict | None:
        """An abstention for an item whose images the model would not see; None for all others."""
        if has_images(item.record) and not await self._model.takes_images():
            return self.abstain(item, f"the record has images, and {self._model_name()} is served without them")
        return None

    def prompt(self, item: Item, template: str, **fields: str) -> Prompt:
        """The template in the item's language, filled. Slots `question` and `answer` are given unless named."""
        by_language = templates(self.template_file)[template]
        slots = {"question": question(item), "answer": item.answer} | fields
        turn = Message("user", by_language[self.language(item)].rstrip(), slots)
        return Prompt((turn,), images=tuple(images(item.record)))

    def language(self, item: Item) -> str:
        """en or zh: as the options say, else as the question is written, else as the record says."""
        if self.options.language != "auto":
            return str(self.options.language)
        share = chinese_share(item.record.prompt)
        return "zh" if (share > 0.5 if share is not None else item.language == "zh") else "en"

    async def read(self, prompt: Prompt) -> Reading:
        """Asks the model. Raises Unreadable, or what the model raises."""
        if self.options.restricted:
            return await self.weigh(prompt)
        said = await self._model.reply(prompt, self.options.max_new_tokens)
        return Reading(self.parsed(said), said=said)

    async def weigh(self, prompt: Prompt) -> Reading:
        """The most probable label, restricted to the labels."""
        names = self.labels.names
        logprobs = await self._model.logprobs(prompt, names, self.labels.ended)
        if not all(map(math.isfinite, logprobs)):
            raise Unreadable(f"the labels' log-probabilities are {logprobs}")
        probabilities = dict(zip(names, normalised(logprobs), strict=True))
        best = max(names, key=probabilities.__getitem__)
        return Reading(best, probabilities, dict(zip(names, logprobs, strict=True)))

    def parsed(self, said: str) -> str:
        label = self.labels.parse(said)
        if label is None:
            raise Unreadable(f"no single label of {list(self.labels.names)} in the reply {said[:200]!r}")
        return label

    def _model_name(self) -> str:
        found = self.options.remote.model if self.options.remote else Path(self.options.model).name
        return str(found)[:80]

    def _digest(self) -> str:
        """Names what a verdict depends on besides the model: options and templates."""
        options = {k: v for k, v in dataclasses.asdict(self.options).items() if k not in ("engine", "name")}
        wording = templates(self.template_file) if self.template_file else {}
        seen = msgspec.msgpack.encode([options, wording], order="deterministic")
        return blake2b(seen, digest_size=4).hexdigest()


def question(item: Item) -> str:
    """The user's turn as a judge reads it: the prompt, with lettered choices under it where the record has some."""
    choices = [f"{chr(ord('A') + index)}. {choice}" for index, choice in enumerate(item.record.choices or [])]
    return "\n".join([item.record.prompt, *choices])


def normalised(logprobs: Sequence[float]) -> list[float]:
    """Probabilities that add up to 1, from ln p."""
    top = max(logprobs)
    weights = [math.exp(value - top) for value in logprobs]
    return [weight / math.fsum(weights) for weight in weights]
