"""Trains the heads of one configuration: reads, gates, splits, fits, calibrates, measures, writes.

Writes `OUT.safetensors`, `OUT.json` (the held-out report) and the tables of `OUT.md` between two marks; what stands around them in the card
is written by people.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import Tensor

from safeladder.verifiers.heads import grounding
from safeladder.verifiers.heads.bundle import Bundle, Said
from safeladder.verifiers.heads.model import Shape, View
from safeladder.verifiers.training import report
from safeladder.verifiers.training.augment import Wraps
from safeladder.verifiers.training.baseline import accuracies
from safeladder.verifiers.training.config import ConfigError, HeadConfig, HeadsConfig, load
from safeladder.verifiers.training.examples import Example, part
from safeladder.verifiers.training.fit import Context, Corpus, calibrate, fit, logits
from safeladder.verifiers.training.gate import Index, evaluation_texts, without_duplicates
from safeladder.verifiers.training.readers import OWN, READERS
from safeladder.verifiers.training.texts import Texts

log = structlog.get_logger()
TASKS = Path(__file__).parents[2] / "launch" / "data" / "tasks.jsonl"


def train(
    path: Path, data: Path | None = None, out: Path | None = None, cache: Path | None = None, folds: bool = True
) -> dict[str, Any]:
    """All heads of the configuration at `path`; returns the report. `data` and `out` replace what the configuration says.

    Raises ConfigError, and OSError where a file is missing.
    """
    config = load(path)
    folder = data or (path.parent / config.data).resolve()
    target = out or path.parent / config.out
    texts = Texts(cache)
    wraps, held_templates, held_planted = _wraps(config, folder, texts)
    corpus = Corpus(texts, wraps)
    gate = (
        Index(evaluation_texts([path.parent / file for file in config.evaluation]), config.gate)
        if config.evaluation
        else None
    )
    bundle = Bundle({}, {})
    found: dict[str, Any] = {"heads": {}}
    for name, head in config.heads.items():
        examples, left_out = read(head, config, folder, gate)
        log.info("head.reading", head=name, examples=len(examples), **left_out)
        corpus.prepare(examples)
        context = _context(head, bundle)
        bundle.said[name] = Said(_shape(head, bundle), head.classes, head.takes)
        bundle.heads[name], result = _one(bundle.said[name].shape, head, examples, corpus, context)
        result["left_out"] = left_out
        result["attacks"] = report.attacks(bundle.heads[name], examples, corpus, context, held_templates, held_planted)
        if folds:
            result["folds"] = [
                _fold(sources, bundle.said[name].shape, head, examples, corpus, context) for sources in head.folds
            ]
        result["licences"] = {source.name: source.licence for source in head.data}
        found["heads"][name] = result
    found["version"] = bundle.save(target.with_suffix(".safetensors"))
    target.with_suffix(".json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    report.write_card(target.with_suffix(".md"), found)
    return found


def read(
    head: HeadConfig, config: HeadsConfig, folder: Path, gate: Index | None
) -> tuple[list[Example], dict[str, int]]:
    """The head's examples, and how many were left out: near-duplicates among those learnt from, and what an evaluation file holds."""
    draw = random.Random(config.seed)
    examples: list[Example] = []
    for source in head.data:
        if source.reader not in READERS:
            raise ConfigError(
                f"source {source.name!r}: no reader {source.reader!r}; known: {', '.join(sorted(READERS))}"
            )
        file = TASKS if source.file == "embedded" else folder / source.file
        rows = READERS[source.reader](file, {"name": source.name, **source.options}, draw)
        examples += [replace(row, source=f"{row.source}{HELD if source.held_out else ''}") for row in rows]
    exact = list(dict.fromkeys(examples))
    measured = [
        e for e in exact if e.source.endswith(HELD) or part(e.group) == "test"
    ]  # as they come: what is judged repeats too
    learnt = [e for e in exact if not (e.source.endswith(HELD) or part(e.group) == "test")]
    if head.deduplicate:
        learnt = without_duplicates(learnt, [f"{e.first}\n{e.second}" for e in learnt], config.gate)
    kept = learnt + measured
    clean = [e for e in kept if gate is None or not (gate.holds(e.first) or gate.holds(e.second))]
    return clean, {"duplicates": len(examples) - len(kept), "leaked": len(kept) - len(clean)}


HELD = " (held out)"


def _shape(head: HeadConfig, bundle: Bundle) -> Shape:
    taken = sum(bundle.said[name.partition("@")[0]].shape.classes for name in head.takes)
    classes = 1 if len(head.classes) == 2 else len(head.classes)
    return Shape(head.reads, classes, head.hidden, taken + (grounding.FEATURES if head.context else 0), head.wide)


def _context(head: HeadConfig, bundle: Bundle) -> Context | None:
    if head.context == "grounding":
        known: dict[Example, Tensor] = {}

        def of_words(batch: Sequence[Example], first: View, second: View) -> Tensor:
            for example in batch:
                if example not in known:
                    evidence, _, question = example.first.rpartition("\n\n")
                    known[example] = torch.tensor(grounding.features(question, evidence, example.second))
            return torch.stack([known[example] for example in batch])

        return of_words
    if head.takes:
        return lambda batch, first, second: bundle.context(head.takes, first, second)
    return None


def _one(
    shape: Shape, head: HeadConfig, examples: Sequence[Example], corpus: Corpus, context: Context | None
) -> tuple[Any, dict[str, Any]]:
    usable = [example for example in examples if not example.source.endswith(HELD)]
    fitted = fit(shape, [e for e in usable if part(e.group) == "train"], corpus, head.fitting, context)
    chosen = [e for e in usable if part(e.group) == "validation"]
    calibrate(fitted, logits(fitted, chosen, corpus, context), chosen)
    held = [e for e in examples if e.source.endswith(HELD) or part(e.group) == "test"]
    found = report.figures(fitted, held, corpus, context)
    if head.baseline:
        learnt = [e for e in usable if part(e.group) != "test"]
        found["baseline"] = accuracies(
            [f"{e.first} {e.second}" for e in learnt],
            [e.target for e in learnt],
            [f"{e.first} {e.second}" for e in held],
            [e.target for e in held],
            [e.source for e in held],
        )
    return fitted, found


def _fold(
    sources: Sequence[str],
    shape: Shape,
    head: HeadConfig,
    examples: Sequence[Example],
    corpus: Corpus,
    context: Context | None,
) -> dict[str, Any]:
    """A head that never saw the sources (a name that ends in * stands for all that begin so), measured on all their rows."""

    def outside(example: Example) -> bool:
        return any(
            example.source == name or (name.endswith("*") and example.source.startswith(name[:-1])) for name in sources
        )

    inside = [e for e in examples if not outside(e) and not e.source.endswith(HELD)]
    fitted = fit(shape, [e for e in inside if part(e.group) == "train"], corpus, head.fitting, context)
    chosen = [e for e in inside if part(e.group) == "validation"]
    calibrate(fitted, logits(fitted, chosen, corpus, context), chosen)
    held = [e for e in examples if outside(e)]
    return {"never_trained_on": list(sources), **report.figures(fitted, held, corpus, context)}


def _wraps(config: HeadsConfig, folder: Path, texts: Texts) -> tuple[Wraps, list[str], list[str]]:
    """Templates and sentences for training, and those kept for measuring: every third."""
    templates = _lines(folder / config.templates) if config.templates else []
    planted = [*_lines(OWN / "planted.jsonl"), *(_lines(folder / config.planted) if config.planted else [])]
    trained = [[text for place, text in enumerate(listed) if place % 3] for listed in (templates, planted)]
    return Wraps(texts, *trained), templates[::3], planted[::3]


def _lines(file: Path) -> list[str]:
    with file.open(encoding="utf-8") as lines:
        return [str(json.loads(line)["text"]) for line in lines]
