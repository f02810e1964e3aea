"""Kind `cost`: a cost model. Cost above 0 means harmful; `verifiers/cost.py` judges with it.

Pairs come from preference lines (chosen, rejected: no signs) and from answers to one prompt of which some are harmful and some not.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import structlog
import torch
from torch import Tensor

from safeladder.verifiers.measure import figures, share, slices
from safeladder.verifiers.rows import Row
from safeladder.verifiers.training.cost_loss import cost_loss
from safeladder.verifiers.training.features import ENCODER, Features, Scalar, computed, features
from safeladder.verifiers.training.stages.held_out import HeldOut
from safeladder.verifiers.training.stages.prepare import Data, DataError, prepare

log = structlog.get_logger()

MAX_CHARACTERS: Final = 4000


@dataclass
class Config:
    """features: `encoder`, or a causal model by name; `train_features`: the model is trained too, not its head alone."""

    output: str
    data: Data = field(default_factory=Data)
    features: str = ENCODER
    train_features: bool = False
    cache: str | None = None
    epochs: int = field(default=8, metadata={"low": 1})
    batch: int = field(default=64, metadata={"low": 1})  # pairs
    learning_rate: float = field(default=1e-3, metadata={"above": 0.0})
    features_learning_rate: float = field(default=1e-5, metadata={"above": 0.0})
    weight_decay: float = field(default=0.05, metadata={"low": 0.0})
    pairs_per_prompt: int = field(default=16, metadata={"low": 1})
    seed: int = 0


@dataclass(frozen=True)
class Pair:
    """Two rows of one prompt. signs: of better and worse, +1 harmful, -1 harmless, 0 unknown."""

    better: Row
    worse: Row
    signs: tuple[int, int]


def pairs(rows: Sequence[Row], per_prompt: int, draw: random.Random) -> list[Pair]:
    """Preferences as they stand; of harmful and harmless answers to one prompt, up to `per_prompt` pairs drawn."""
    sides: dict[tuple[str, str], dict[int, list[Row]]] = defaultdict(lambda: {0: [], 1: []})
    for row in rows:
        if row.field == "preferred":
            sides["preferred", row.where][row.truth or 0].append(row)
        elif row.field == "harmful":
            sides["harmful", row.record.prompt][row.truth or 0].append(row)
    found: list[Pair] = []
    for (kind, _), by_truth in sides.items():
        better, worse = (by_truth[1], by_truth[0]) if kind == "preferred" else (by_truth[0], by_truth[1])
        signs = (0, 0) if kind == "preferred" else (-1, 1)
        every = [(b, w) for b in better for w in worse]
        found += [Pair(b, w, signs) for b, w in (every if len(every) <= per_prompt else draw.sample(every, per_prompt))]
    return found


def train(config: Config) -> HeldOut:
    """Fits, measures on the test part, and writes head, settings and report to `config.output`. Raises DataError."""
    data = Data(**{**vars(config.data), "balance": False})  # pairs balance themselves: each has one of both
    prepared = prepare(data, config.seed)
    draw = random.Random(config.seed)
    fitted = pairs(prepared.train, config.pairs_per_prompt, draw)
    held = pairs(prepared.test, config.pairs_per_prompt, draw)
    if not fitted:
        raise DataError(
            "no pairs: cost models learn from preferences, or from harmful and harmless answers to one prompt"
        )
    source = features(config.features, Path(config.cache) if config.cache else None, config.train_features)
    head = _fit(config, source, fitted)
    folder = Path(config.output)
    _save(config, source, head, folder)
    test = [row for row in prepared.test if row.field == "harmful"]
    cost = costs(source, head, [_pair(row) for row in test]).numpy().astype(np.float64)
    truth = np.array([row.truth for row in test], np.float64)
    probability = 1.0 / (1.0 + np.exp(-cost))
    parts = slices(
        truth, probability, {"language": [r.record.language for r in test], "source": [r.record.source for r in test]}
    )
    better, worse = (costs(source, head, [_pair(getattr(pair, side)) for pair in held]) for side in ("better", "worse"))
    right = share(int((worse > better).sum()), len(held))
    report = HeldOut(
        "cost",
        folder,
        prepared.counts() | {"train pairs": len(fitted), "test pairs": len(held)},
        prepared.removed,
        {"all": figures(truth, probability)} | {f"{c} {v}": each for c, by in parts.items() for v, each in by.items()}
        if test
        else {},
        {"pairs in the right order": right[0], "lower bound (95 %)": right[1], "upper bound (95 %)": right[2]},
        ["Probability of harm: the sigmoid of the cost."],
    )
    report.write()
    return report


def costs(source: Features, head: Scalar, texts: Sequence[tuple[str, str]]) -> Tensor:
    """[N], above 0 where harmful."""
    with torch.no_grad():
        found: Tensor = head(computed(source, texts))[:, 0]
    return found


def _fit(config: Config, source: Features, fitted: Sequence[Pair]) -> Scalar:
    torch.manual_seed(config.seed)
    texts = list(dict.fromkeys(_pair(row) for pair in fitted for row in (pair.better, pair.worse)))
    number = {text: index for index, text in enumerate(texts)}
    frozen = computed(source, texts)
    head = Scalar(source.width)
    head.standardise(frozen)
    groups = [{"params": list(head.parameters()), "lr": config.learning_rate}]
    if config.train_features:
        groups.append({"params": source.parameters(), "lr": config.features_learning_rate})
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    for epoch in range(config.epochs):
        total = 0.0
        for rows in torch.randperm(len(fitted)).split(config.batch):
            batch = [fitted[index] for index in rows.tolist()]
            sides = []
            for side in ("better", "worse"):
                wanted = [_pair(getattr(pair, side)) for pair in batch]
                view = (
                    source(wanted) if config.train_features else frozen[torch.tensor([number[text] for text in wanted])]
                )
                sides.append(head(view)[:, 0])
            signs = torch.tensor([pair.signs for pair in batch], dtype=torch.float32)
            loss = cost_loss(sides[0], sides[1], signs[:, 0], signs[:, 1])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            total += loss.item() * len(batch)
        log.info("epoch.completed", kind="cost", epoch=epoch, loss=round(total / len(fitted), 4))
    head.eval().requires_grad_(False)
    return head


def _save(config: Config, source: Features, head: Scalar, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    head.save(folder / "head.safetensors")
    name = source.name
    if config.train_features:
        name = "features"
        for part in (source.model, source.tokenizer):  # type: ignore[attr-defined]
            part.save_pretrained(folder / name)
    settings = {"features": name, "inside": config.train_features}
    (folder / "settings.json").write_text(json.dumps(settings) + "\n", encoding="utf-8")


def _pair(row: Row) -> tuple[str, str]:
    return row.record.prompt[-MAX_CHARACTERS:], row.text[:MAX_CHARACTERS]
