"""One head fitted: loss weighted by source and class, texts wrapped and padded on the way, calibrated on the validation part."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
import torch
from torch import Tensor, nn

from safeladder.verifiers.heads.bundle import Bundle, complied
from safeladder.verifiers.heads.model import LANGUAGES, Head, Shape, View, view
from safeladder.verifiers.heads.pieces import Piece
from safeladder.verifiers.training.augment import Wraps
from safeladder.verifiers.training.examples import Example
from safeladder.verifiers.training.texts import Texts

log = structlog.get_logger()
_GROUPS: Final = 100  # of one language, for a calibration of its own
# what a head is told beside its texts: float32 [N, context]
Context = Callable[[Sequence[Example], View, View], Tensor]


@dataclass(frozen=True)
class Fitting:
    """How a head is fitted. `wrap` and `pad`: shares of a batch that get a jailbreak template or foreign sentences."""

    epochs: int = 8
    batch: int = 192
    learning_rate: float = 1.5e-3
    decay: float = 0.1
    decay_wide: float = 0.02
    dropout: float = 0.2
    wrap: float = 0.0
    pad: float = 0.0
    seed: int = 20_250_728


class Corpus:
    """Examples with their texts encoded, and batches of them as a head takes them.

    In a fit, texts are wrapped and padded at random; where a head is measured or calibrated, texts come through the heads that are in
    `bundle` by then, as they do in a verifier.
    """

    def __init__(self, texts: Texts, bundle: Bundle, wraps: Wraps | None = None) -> None:
        self._texts, self._wraps = texts, wraps
        self.bundle = bundle
        self._pieces: dict[str, Piece] = {}
        self._joined: dict[str, Piece] = {}

    def prepare(self, examples: Sequence[Example]) -> None:
        """Encodes every text that is not known yet."""
        texts = list(dict.fromkeys(text for example in examples for text in (example.first, example.second)))
        self._pieces.update(zip(texts, self._texts.pieces(texts), strict=True))

    def join(self, examples: Sequence[Example], seed: int) -> None:
        """Encodes each first text that may be wrapped once more, within one segment with a part of a template."""
        if self._wraps is None:
            return
        draw = random.Random(seed)
        texts = list(dict.fromkeys(example.first for example in examples if example.wraps and example.first))
        within = [self._wraps.joined(text, draw) for text in texts]
        self._joined = dict(zip(texts, self._texts.pieces(within), strict=True))

    def sizes(self, examples: Sequence[Example]) -> list[int]:
        """Segments of each example's longer text."""
        return [max(len(self._pieces[e.first].vectors), len(self._pieces[e.second].vectors)) for e in examples]

    def sides(self, examples: Sequence[Example]) -> tuple[View, View]:
        """First and second texts as a verifier's heads are given them."""
        return self.bundle.sides([self._pieces[e.first] for e in examples], [self._pieces[e.second] for e in examples])

    def said(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """The probabilities of the heads that are in `bundle` by then."""
        first, second = ([self._pieces[getattr(e, side)] for e in examples] for side in ("first", "second"))
        parts = [
            self.bundle(first[at : at + 256], second[at : at + 256], languages(examples[at : at + 256]))
            for at in range(0, len(examples), 256)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}

    def augmented(self, examples: Sequence[Example], fitting: Fitting, draw: random.Random) -> tuple[View, View]:
        """First and second texts, some wrapped or padded as `draw` decides."""
        first = [self._pieces[example.first] for example in examples]
        second = [self._pieces[example.second] for example in examples]
        if self._wraps is not None:
            for row, example in enumerate(examples):
                if not example.wraps:
                    continue
                if example.first and draw.random() < fitting.wrap:
                    alone, joined = first[row], self._joined.get(example.first)
                    inside = alone if joined is None or draw.random() < 0.5 else joined
                    first[row] = self._wraps.template(inside, draw)
                if example.second and draw.random() < fitting.pad:
                    second[row] = self._wraps.padding(second[row], draw)
        return view(first), view(second)


def fit(
    shape: Shape, examples: Sequence[Example], corpus: Corpus, fitting: Fitting, context: Context | None = None
) -> Head:
    """A head trained on `examples`, not yet calibrated."""
    torch.manual_seed(fitting.seed)
    draw = random.Random(fitting.seed)
    head = Head(shape, fitting.dropout)
    if fitting.wrap:
        corpus.join(examples, fitting.seed)
    weights = balance(examples)
    wide = [p for name, p in head.named_parameters() if name.startswith("wide")]
    deep = [p for name, p in head.named_parameters() if not name.startswith("wide")]
    groups = [{"params": deep, "weight_decay": fitting.decay}]
    if wide:
        groups.append({"params": wide, "weight_decay": fitting.decay_wide})
    optimizer = torch.optim.AdamW(groups, lr=fitting.learning_rate)
    steps = fitting.epochs * -(-len(examples) // fitting.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, fitting.learning_rate, total_steps=steps, pct_start=0.15)
    for epoch in range(fitting.epochs):
        head.train()
        total = 0.0
        for places in _batches(corpus.sizes(examples), fitting.batch, draw):
            batch = [examples[place] for place in places]
            sides = corpus.augmented(batch, fitting, draw)
            found = head(*sides, context(batch, *sides) if context else None)
            each = loss(found, torch.tensor([example.target for example in batch]))
            value = (each * weights[places]).mean()
            optimizer.zero_grad()
            torch.autograd.backward(value)
            nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += value.item() * len(batch)
        log.info("epoch.completed", epoch=epoch, loss=round(total / len(examples), 4))
    head.eval()
    return head


def _batches(sizes: Sequence[int], batch: int, draw: random.Random) -> list[list[int]]:
    """All places in random batches of texts of like length, which need little padding."""
    order = list(range(len(sizes)))
    draw.shuffle(order)
    found = []
    for start in range(0, len(order), 16 * batch):
        chunk = sorted(order[start : start + 16 * batch], key=lambda place: sizes[place])
        found += [chunk[at : at + batch] for at in range(0, len(chunk), batch)]
    draw.shuffle(found)
    return found


def balance(examples: Sequence[Example]) -> Tensor:
    """Each example's weight, mean 1: a source's class weighs as the root of its size, times what the example itself says."""
    cells = Counter((example.source, example.language, example.target) for example in examples)
    total = torch.tensor([e.weight * cells[e.source, e.language, e.target] ** -0.5 for e in examples])
    targets = torch.tensor([e.target for e in examples])
    for target in set(targets.tolist()):  # the classes weigh the same altogether
        total[targets == target] /= total[targets == target].sum()
    return total / total.mean()


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each row [N]."""
    if logits.shape[1] == 1:
        return nn.functional.binary_cross_entropy_with_logits(logits.squeeze(1), targets.float(), reduction="none")
    return nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=0.02)


@torch.no_grad()
def logits(head: Head, examples: Sequence[Example], corpus: Corpus, context: Context | None = None) -> Tensor:
    """Uncalibrated logits [N, classes]."""
    head.eval()
    sizes = corpus.sizes(examples)
    order = sorted(range(len(examples)), key=lambda place: sizes[place])
    result = torch.empty(len(examples), head.shape.classes)
    for start in range(0, len(order), 256):
        places = order[start : start + 256]
        batch = [examples[place] for place in places]
        sides = corpus.sides(batch)
        result[places] = head(*sides, context(batch, *sides) if context else None)
    return result


def languages(examples: Sequence[Example]) -> Tensor:
    return torch.tensor([LANGUAGES.index(example.language) for example in examples], dtype=torch.long)


def calibrate(head: Head, found: Tensor, examples: Sequence[Example]) -> None:
    """Temperature and bias of each language that make the validation rows likeliest (Guo et al., arXiv 1706.04599, section 4.2;
    with one class this is Platt's scaling). A language whose rows come from fewer than `_GROUPS` groups takes the values of all rows: a few
    patterns of answers, however many rows they make, say little about the next."""
    targets = torch.tensor([example.target for example in examples])
    places = languages(examples)
    for place, language in enumerate(LANGUAGES):
        groups = {example.group for example in examples if example.language == language}
        rows = places == place if len(groups) >= _GROUPS else torch.ones_like(places, dtype=torch.bool)
        scale, bias = _scaling(found[rows], targets[rows])
        head.temperature[place], head.bias[place] = 1.0 / scale, bias


def lean(head: Head, said: Tensor, examples: Sequence[Example], catch: float) -> None:
    """Moves the bias of a calibrated yes-or-no head until 0.5 catches the share `catch` of the validation rows' positives, where it catches
    fewer: a miss costs more than an alarm. `said`: its probabilities [N]. It is paid for in calibration, which the report shows. Ours."""
    positives = said[torch.tensor([example.target == 1 for example in examples])]
    lowest = positives.sort(descending=True).values[math.ceil(catch * len(positives)) - 1]
    head.bias += torch.logit(lowest.clamp(1e-4, 0.5)).neg()


def _scaling(found: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    log_scale = torch.zeros((), requires_grad=True)
    bias = torch.zeros(found.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([log_scale, bias], max_iter=60)

    def closure() -> float:
        optimizer.zero_grad()
        scaled = found * log_scale.exp() + bias
        if found.shape[1] == 1:
            value = nn.functional.binary_cross_entropy_with_logits(scaled.squeeze(1), targets.float())
        else:
            value = nn.functional.cross_entropy(scaled, targets)
        value = value + 1e-3 * (log_scale**2 + (bias**2).sum())
        torch.autograd.backward(value)
        return value.item()

    optimizer.step(closure)
    return log_scale.detach().exp(), bias.detach()


@torch.no_grad()
def probabilities(head: Head, found: Tensor, examples: Sequence[Example], corpus: Corpus) -> Tensor:
    """Calibrated, as a verifier is told them: [N] of yes, or [N, classes]."""
    said = head.calibrated(found, languages(examples))
    return complied(head.shape.complied, said, corpus.said(examples)) if head.shape.complied else said
