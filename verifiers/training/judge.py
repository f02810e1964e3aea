"""Kind `judge`: a causal model learns to say the label string of a template. The learner's own packed step does it (objective `sft`).

The loss stands on the label's tokens and the end of the turn alone; classes are drawn equally often. Measured by the
label that the model finds likeliest, among those that occur.
"""

from __future__ import annotations

import importlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from transformers import PreTrainedModel

from safeladder.policies import model as models
from safeladder.policies.batch import TrainingGroup
from safeladder.policies.options import StepOptions
from safeladder.policies.scoring import completion_logprobs
from safeladder.policies.step import LearnerStep
from safeladder.verifiers.measure import Figures, cohen_kappa, figures, macro_f1, share
from safeladder.verifiers.rows import Row
from safeladder.verifiers.training.judge_templates import Template
from safeladder.verifiers.training.stages.held_out import HeldOut
from safeladder.verifiers.training.stages.prepare import Data, DataError, prepare

log = structlog.get_logger()


@dataclass
class Config:
    """model: any causal language model with a chat template. template: `module:function`, a row to (prompt, label) or None."""

    output: str
    data: Data = field(default_factory=Data)
    model: str = "embedded"
    cache: str | None = None
    template: str = "safeladder.verifiers.training.judge_templates:good_or_bad"
    steps: int = field(default=200, metadata={"low": 1})
    batch: int = field(default=16, metadata={"low": 1})  # rows a step
    learning_rate: float = field(default=2e-5, metadata={"above": 0.0})
    warmup_steps: int = field(default=10, metadata={"low": 0})
    max_prompt_tokens: int = field(default=1024, metadata={"low": 16})  # longer rows are left out, and counted
    token_budget: int = field(default=2048, metadata={"low": 16})
    test_rows: int = field(default=500, metadata={"low": 1})
    seed: int = 0


@dataclass(frozen=True)
class Demonstration:
    """prompt_ids [P]; label and the ids [L] that say it, end of turn included."""

    prompt_ids: list[int]
    label: str
    label_ids: list[int]


def train(config: Config) -> HeldOut:
    """Trains, measures, and writes the model folder with its report. Raises DataError, TemplateError, ModelError."""
    prepared = prepare(config.data, config.seed)
    template = find_template(config.template)
    model, tokenizer = models.load(models.resolve(config.model, Path(config.cache) if config.cache else None))
    shown, too_long = demonstrations(prepared.train, template, tokenizer, config.max_prompt_tokens)
    held, _ = demonstrations(prepared.test[: config.test_rows], template, tokenizer, config.max_prompt_tokens)
    if len({each.label for each in shown}) < 2:
        raise DataError(
            f"the template {config.template} gives fewer than two labels for the {len(prepared.train)} rows to train on"
        )
    labels = sorted({each.label for each in shown})
    before = said(model, held, labels, tokenizer, config.token_budget)
    _learn(config, model, shown)
    after = said(model, held, labels, tokenizer, config.token_budget)
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    report = HeldOut(
        "judge",
        folder,
        prepared.counts()
        | {f"shown as {label}": count for label, count in Counter(each.label for each in shown).items()},
        prepared.removed | {"too long": too_long},
        _figures(labels, held, after),
        _numbers(labels, held, before, "before") | _numbers(labels, held, after, "after"),
        [f"Template: {config.template}. Labels: {', '.join(labels)}. Measured by the likeliest of them."],
    )
    report.write()
    return report


class TemplateError(ValueError):
    """The template cannot be found, or is no function."""


def find_template(path: str) -> Template:
    """The function at `module:function`. Raises TemplateError."""
    module, colon, name = path.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), name) if colon else None
    except (ImportError, AttributeError) as error:
        raise TemplateError(f"template {path!r}: {error}") from None
    if not callable(found):
        raise TemplateError(f"template {path!r} is not of the form module:function")
    template: Template = found
    return template


def demonstrations(
    rows: Sequence[Row], template: Template, tokenizer: Any, longest: int
) -> tuple[list[Demonstration], int]:
    """What the template makes of the rows, and how many were left out for the length of their prompt in tokens."""
    shown, too_long = [], 0
    for row in rows:
        if (asked := template(row)) is None:
            continue
        prompt_ids = models.encode_prompt(tokenizer, asked[0])
        if len(prompt_ids) > longest:
            too_long += 1
        else:
            shown.append(Demonstration(prompt_ids, asked[1], label_ids(tokenizer, asked[1])))
    return shown, too_long


def label_ids(tokenizer: Any, label: str) -> list[int]:
    """The label's tokens and the end of the turn."""
    return [*tokenizer(label, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def _learn(config: Config, model: PreTrainedModel, shown: Sequence[Demonstration]) -> None:
    options = StepOptions(
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
        objective={"sft": {}},
        advantage={"ones": {}},
        correction={"off": {}},
        reference_kl=0.0,
        token_budget=config.token_budget,
    )
    learner = LearnerStep(model, options)
    drawn = balanced([each.label for each in shown], random.Random(config.seed))
    for step in range(config.steps):
        batch = [shown[next(drawn)] for _ in range(config.batch)]
        groups = [
            TrainingGroup.supervised(f"{step}-{n}", each.prompt_ids, each.label_ids) for n, each in enumerate(batch)
        ]
        report = learner.train(groups)
        log.info("judge.stepped", kind="judge", step=step + 1, steps=config.steps, loss=round(report.loss, 4))
    model.eval()


def balanced(labels: Sequence[str], draw: random.Random) -> Iterator[int]:
    """Endless indices: class after class in turn, within a class each row once before any comes again."""
    rows: dict[str, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        rows[label].append(index)
    waiting: dict[str, list[int]] = {label: [] for label in rows}
    while True:
        for label, indices in rows.items():
            if not waiting[label]:
                waiting[label] = draw.sample(indices, len(indices))
            yield waiting[label].pop()


@torch.no_grad()
def said(
    model: PreTrainedModel, held: Sequence[Demonstration], labels: Sequence[str], tokenizer: Any, token_budget: int
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """P(label) among `labels`, [rows, labels]: the softmax of the whole strings' log-probabilities."""
    ids = {label: label_ids(tokenizer, label) for label in labels}
    result = np.zeros((len(held), len(labels)))
    for row, each in enumerate(held):
        totals = completion_logprobs(
            model, [(each.prompt_ids, ids[label]) for label in labels], token_budget=token_budget
        )
        result[row] = torch.softmax(torch.stack([total.double().sum() for total in totals]), 0).cpu().numpy()
    return result


def _figures(
    labels: Sequence[str], held: Sequence[Demonstration], probability: np.ndarray[Any, Any]
) -> dict[str, Figures]:
    """Each label against the rest."""
    if not held:
        return {}
    truth = np.array([labels.index(each.label) if each.label in labels else -1 for each in held])
    best = probability.argmax(1)
    return {label: figures((truth == n).astype(float), probability[:, n], best == n) for n, label in enumerate(labels)}


def _numbers(
    labels: Sequence[str], held: Sequence[Demonstration], probability: np.ndarray[Any, Any], when: str
) -> dict[str, float]:
    """Accuracy with its interval, macro-F1 and kappa of the likeliest label."""
    truth = [each.label for each in held]
    best = [labels[index] for index in probability.argmax(1)]
    value, low, high = share(sum(a == b for a, b in zip(truth, best, strict=True)), len(held))
    return {
        f"accuracy {when}": value,
        f"accuracy {when}, lower bound (95 %)": low,
        f"accuracy {when}, upper bound (95 %)": high,
        f"macro-F1 {when}": macro_f1(truth, best),
        f"kappa {when}": cohen_kappa(truth, best),
    }
