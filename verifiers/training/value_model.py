"""Kind `value_model`: principled value models, V_d(prefix) = E[score of the final answer under the verifier of dimension d | prefix].

The paper gives no recipe; this one is ours, after Monte-Carlo value estimation with on-policy iterations
(arXiv 2503.02368):

    1. draw trajectories step by step: in the first round from the policy, later the best of N candidates a step under the value models
    2. cut each at some steps, draw M continuations of each prefix from the policy, and let the dimension's verifier score the answers:
       their mean is the prefix's label
    3. fit one small head over all labels so far, an output a dimension, by cross-entropy against the soft labels

A continuation without a score is left out of the mean, and a prefix of which fewer than half have one is left out of that dimension.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import structlog
import torch
from torch import Tensor

from safeladder.policies import model as models
from safeladder.policies.engines.registry import create as create_engine
from safeladder.protocol.messages import Record
from safeladder.verifiers.contract import Item, Verifier, run
from safeladder.verifiers.measure import Figures, auroc, brier_score, figures
from safeladder.verifiers.reading import goodness
from safeladder.verifiers.registry import create
from safeladder.verifiers.rows import read
from safeladder.verifiers.training.features import Features, Scalar, computed, features
from safeladder.verifiers.training.stages.held_out import HeldOut
from safeladder.verifiers.training.stages.prepare import DataError
from safeladder.verifiers.training.stages.split import part_of
from safeladder.verifiers.training.trajectories import DELIMITER, Prefix, Sampler

log = structlog.get_logger()

DIMENSIONS: Final = ("safety", "value", "knowledge")
SCORE_TIMEOUT_S: Final = 600.0


@dataclass
class Dimension:
    """The verifier whose score of the final answer a head learns to foresee, and the weight of the head in guided drawing."""

    verifier: str = "safety"
    options: dict[str, Any] = field(default_factory=dict)
    weight: float = field(default=1.0, metadata={"low": 0.0})


@dataclass
class Config:
    """tasks: files of task records, whose prompts are drawn for. Token numbers bound the cost: prompts x cuts x continuations answers
    a round."""

    output: str
    tasks: list[str] = field(default_factory=list)
    dimensions: dict[str, Dimension] = field(default_factory=dict)
    policy: str = "embedded"
    cache: str | None = None
    engine: str = "transformers"
    features: str = "encoder"
    prompts: int = field(default=64, metadata={"low": 2})
    test: float = field(default=0.25, metadata={"above": 0.0, "high": 0.9})  # share of prompts that are measured on
    rounds: int = field(default=2, metadata={"low": 1})
    cuts: int = field(default=4, metadata={"low": 1})  # prefixes of a trajectory
    continuations: int = field(default=8, metadata={"low": 1})
    candidates: int = field(default=4, metadata={"low": 1})  # a step, from the second round on
    delimiter: str = DELIMITER
    step_tokens: int = field(default=64, metadata={"low": 1})
    total_tokens: int = field(default=256, metadata={"low": 2})
    temperature: float = field(default=0.8, metadata={"above": 0.0})
    epochs: int = field(default=40, metadata={"low": 1})
    learning_rate: float = field(default=2e-3, metadata={"above": 0.0})
    weight_decay: float = field(default=0.05, metadata={"low": 0.0})
    seed: int = 0


@dataclass(frozen=True)
class Labelled:
    """A prefix of an answer to a prompt. labels: dimension -> mean score of its continuations in [0, 1], nan where unknown."""

    prompt: str
    prefix: Prefix
    labels: Mapping[str, float]
    round: int
    held_out: bool


def train(config: Config) -> HeldOut:
    """Draws, labels, fits, round after round; writes heads, labels and report to `config.output`. Raises DataError."""
    if not config.dimensions:
        raise DataError(f"dimensions is empty; name some of {', '.join(DIMENSIONS)}, each with its verifier")
    if unknown := set(config.dimensions) - set(DIMENSIONS):
        raise DataError(f"dimensions are {', '.join(DIMENSIONS)}, not {', '.join(sorted(unknown))}")
    records = _records(config)
    verifiers = {name: create(each.verifier, each.options) for name, each in config.dimensions.items()}
    source = features(config.features, Path(config.cache) if config.cache else None)
    labelled, head = asyncio.run(_rounds(config, records, verifiers, source))
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    head.save(folder / "head.safetensors")
    versions = {name: f"{verifier.name} {verifier.version}" for name, verifier in verifiers.items()}
    settings = {"features": source.name, "dimensions": list(config.dimensions), "learned_from": versions}
    (folder / "settings.json").write_text(json.dumps(settings) + "\n", encoding="utf-8")
    report = _report(config, labelled, source, head, folder)
    report.write()
    return report


def mean_score(scores: Sequence[float | None]) -> float:
    """The mean of the scores that there are; nan where fewer than half of them are."""
    found = [score for score in scores if score is not None]
    return float(np.mean(found)) if found and 2 * len(found) >= len(scores) else float("nan")


def values(source: Features, head: Scalar, states: Sequence[tuple[str, str]]) -> Tensor:
    """V of (prompt, prefix) pairs: [N, dimensions], in (0, 1)."""
    with torch.no_grad():
        found: Tensor = torch.sigmoid(head(computed(source, states)))
    return found


def fit(rows: Tensor, labels: Tensor, config: Config) -> Scalar:
    """rows: [N, width]; labels: [N, dimensions] in [0, 1], nan where unknown, which stand in no loss."""
    torch.manual_seed(config.seed)
    head = Scalar(rows.shape[1], labels.shape[1])
    head.standardise(rows)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    known = labels.isfinite()
    for _ in range(config.epochs):
        for part in torch.randperm(len(rows)).split(64):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                head(rows[part]), labels[part].nan_to_num(), weight=known[part].float(), reduction="sum"
            ) / known[part].sum().clamp(min=1)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    head.eval().requires_grad_(False)
    return head


def _records(config: Config) -> list[Record]:
    records: dict[str, Record] = {}
    for file in config.tasks:
        rows, faults = read(Path(file).expanduser(), prompts=True)
        if faults:
            raise DataError(f"{len(faults)} malformed lines; first: {faults[0]}")
        records |= {row.record.prompt: row.record for row in rows if row.record.prompt}
    if len(records) < 2:
        raise DataError("tasks hold fewer than two prompts")
    return random.Random(config.seed).sample(list(records.values()), min(config.prompts, len(records)))


async def _rounds(
    config: Config, records: Sequence[Record], verifiers: Mapping[str, Verifier], source: Features
) -> tuple[list[Labelled], Scalar]:
    folder = models.resolve(config.policy, Path(config.cache) if config.cache else None)
    tokenizer = models.load_tokenizer(folder)
    engine = create_engine(config.engine, folder)
    await engine.start()
    labelled: list[Labelled] = []
    head: Scalar | None = None
    try:
        sampler = Sampler(
            engine, tokenizer, config.temperature, config.step_tokens, config.total_tokens, config.delimiter
        )
        for number in range(config.rounds):
            for place, record in enumerate(records):
                labelled += await _label(
                    config, record, verifiers, sampler, source, head, number, config.seed + 1000 * place
                )
            shown = [each for each in labelled if not each.held_out] or labelled
            head = fit(computed(source, _states(shown)), _labels(config, shown), config)
            log.info(
                "round.completed", kind="value_model", round=number + 1, rounds=config.rounds, prefixes=len(labelled)
            )
    finally:
        await engine.stop()
    assert head is not None
    return labelled, head


async def _label(
    config: Config,
    record: Record,
    verifiers: Mapping[str, Verifier],
    sampler: Sampler,
    source: Features,
    head: Scalar | None,
    number: int,
    seed: int,
) -> list[Labelled]:
    """One trajectory of a prompt, cut and labelled."""
    weights = torch.tensor([each.weight for each in config.dimensions.values()])

    async def choose(candidates: Sequence[Prefix]) -> int:
        assert head is not None
        found = values(source, head, [(record.prompt, each.text) for each in candidates])
        return int((torch.logit(found, eps=1e-6) * weights).sum(1).argmax())

    prompt_ids = models.encode_prompt(sampler.tokenizer, record.prompt)
    states = await sampler.trajectory(prompt_ids, 1 if head is None else config.candidates, choose, seed + number)
    draw = random.Random(f"{seed}/{number}")
    cut = sorted(draw.sample(states, min(config.cuts, len(states))), key=lambda state: state.position)
    held_out = part_of(record.prompt, validation=0.0, test=config.test) == "test"
    result = []
    for state in cut:
        texts = await sampler.continuations(prompt_ids, state, config.continuations, seed + number)
        items = [Item(record, text, sample) for sample, text in enumerate(texts)]
        labels = {
            name: mean_score(
                [
                    goodness(v) if v.status == "ok" else None
                    for v in await asyncio.to_thread(run, [each], items, SCORE_TIMEOUT_S)
                ]
            )
            for name, each in verifiers.items()
        }
        result.append(Labelled(record.prompt, state, labels, number, held_out))
    return result


def _states(labelled: Sequence[Labelled]) -> list[tuple[str, str]]:
    return [(each.prompt, each.prefix.text) for each in labelled]


def _labels(config: Config, labelled: Sequence[Labelled]) -> Tensor:
    return torch.tensor([[each.labels[name] for name in config.dimensions] for each in labelled], dtype=torch.float32)


def _report(config: Config, labelled: Sequence[Labelled], source: Features, head: Scalar, folder: Path) -> HeldOut:
    """By dimension: the held-out prefixes' labels, cut at 1/2, against V; Brier and area also by position and round."""
    held = [each for each in labelled if each.held_out]
    found = values(source, head, _states(held)).double().numpy() if held else np.zeros((0, len(config.dimensions)))
    shown: dict[str, Figures] = {}
    numbers: dict[str, float] = {}
    for column, name in enumerate(config.dimensions):
        soft = np.array([each.labels[name] for each in held], np.float64)
        known = np.isfinite(soft)
        numbers[f"{name}: prefixes without a label"] = float(len(held) - known.sum())
        if known.any():
            truth, value = (soft >= 0.5).astype(np.float64), found[:, column]
            shown[name] = figures(truth[known], value[known])
            numbers[f"{name}: Brier of the soft label"] = brier_score(soft[known], value[known])
            numbers[f"{name}: Brier of the mean label"] = brier_score(
                soft[known], np.full(known.sum(), soft[known].mean())
            )
            for where, part in _parts(held):
                rows = known & part
                if rows.any():
                    numbers[f"{name}: Brier, {where}"] = brier_score(soft[rows], value[rows])
                    numbers[f"{name}: AUROC, {where}"] = auroc(truth[rows], value[rows])
    counts = {"train prefixes": len(labelled) - len(held), "test prefixes": len(held)}
    notes = [
        "The recipe is ours: the paper gives none. Labels are means over continuations, so their own noise is in every figure."
    ]
    return HeldOut("value_model", folder, counts, {}, shown, numbers, notes)


def _parts(held: Sequence[Labelled]) -> list[tuple[str, np.ndarray[Any, np.dtype[np.bool_]]]]:
    position = np.array([each.prefix.position for each in held])
    rounds = np.array([each.round for each in held])
    parts = [
        ("step 1", position == 1),
        ("steps 2 and 3", (position > 1) & (position < 4)),
        ("step 4 on", position >= 4),
    ]
    return parts + [(f"round {number + 1}", rounds == number) for number in sorted(set(rounds.tolist()))]
