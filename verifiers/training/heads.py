"""Trains the heads of one configuration: reads, gates, splits, fits, calibrates, measures, writes.

Writes `OUT.safetensors`, `OUT.json` (the held-out report) and the tables of `OUT.md` between two marks; what stands around them in the card
is written by people.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import Tensor

from safeladder.verifiers.heads import grounding
from safeladder.verifiers.heads.bundle import Bundle, Said
from safeladder.verifiers.heads.model import Head, Shape, View
from safeladder.verifiers.training import report
from safeladder.verifiers.training.augment import Wraps
from safeladder.verifiers.training.baseline import accuracies
from safeladder.verifiers.training.config import ConfigError, HeadConfig, HeadsConfig, load
from safeladder.verifiers.training.examples import Example, part
from safeladder.verifiers.training.fit import Context, Corpus, calibrate, fit, lean, logits, probabilities
from safeladder.verifiers.training.planted import OWN, planted_sentences
from safeladder.verifiers.training.readers import READERS
from safeladder.verifiers.training.stages.duplicates import near_duplicates
from safeladder.verifiers.training.stages.leakage import LeakageGate, evaluation_texts
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
    gate = LeakageGate(evaluation_texts([path.parent / file for file in config.evaluation]), **asdict(config.gate))
    bundle = Bundle({}, {})
    corpus = Corpus(texts, bundle, wraps)
    rows: dict[str, list[Example]] = {}
    found: dict[str, Any] = {"heads": {}, "folds": []}
    for name, head in config.heads.items():
        rows[name], left_out = read(head, config, folder, gate)
        log.info("head.reading", head=name, examples=len(rows[name]), **left_out)
        corpus.prepare(rows[name])
        context = _context(head, bundle)
        fitted, result = _one(_shape(head, bundle), head, rows[name], corpus, context)
        result["left_out"] = left_out
        result["attacks"] = report.attacks(fitted, rows[name], corpus, context, held_templates, held_planted)
        result["licences"] = {source.name: source.licence for source in head.data}
        found["heads"][name] = result
        bundle.add(name, Said(fitted.shape, head.classes, head.takes), fitted)
    if folds:
        found["folds"] = [
            _fold(sources, config, rows, bundle, Corpus(texts, Bundle({}, {}), wraps)) for sources in config.folds
        ]
    found["version"] = bundle.save(target.with_suffix(".safetensors"))
    target.with_suffix(".json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    report.write_card(target.with_suffix(".md"), found)
    return found


def read(
    head: HeadConfig, config: HeadsConfig, folder: Path, gate: LeakageGate
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
        texts = [f"{e.first}\n{e.second}" for e in learnt]
        near = near_duplicates(texts, [e.target for e in learnt], config.gate.near)
        learnt = [example for example, match in zip(learnt, near, strict=True) if match is None]
    kept = learnt + measured
    clean = [e for e in kept if gate.leak(e.first) is None and gate.leak(e.second) is None]
    return clean, {"duplicates": len(examples) - len(kept), "leaked": len(kept) - len(clean)}


HELD = " (held out)"


def _shape(head: HeadConfig, bundle: Bundle) -> Shape:
    if head.complied and not {"prompt_harm", "refusal"} <= bundle.said.keys():
        raise ConfigError("complied: wants the heads prompt_harm and refusal before this one")
    taken = sum(bundle.said[name.partition("@")[0]].shape.classes for name in head.takes)
    classes = 1 if len(head.classes) == 2 else len(head.classes)
    context = taken + (grounding.FEATURES if head.context else 0)
    return Shape(head.reads, classes, head.hidden, context, head.wide, head.windowed, head.divides, head.complied)


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
) -> tuple[Head, dict[str, Any]]:
    """A head fitted and calibrated, and its figures on the test part."""
    fitted = _fitted(shape, head, examples, corpus, context)
    held = [e for e in examples if e.source.endswith(HELD) or part(e.group) == "test"]
    found = report.figures(fitted, held, corpus, context)
    if head.baseline:
        learnt = [e for e in examples if not (e.source.endswith(HELD) or part(e.group) == "test")]
        found["baseline"] = accuracies(
            [f"{e.first} {e.second}" for e in learnt],
            [e.target for e in learnt],
            [f"{e.first} {e.second}" for e in held],
            [e.target for e in held],
            [e.source for e in held],
        )
    return fitted, found


def _fitted(
    shape: Shape, head: HeadConfig, examples: Sequence[Example], corpus: Corpus, context: Context | None
) -> Head:
    """A head fitted on the train part, and calibrated on the validation part."""
    usable = [example for example in examples if not example.source.endswith(HELD)]
    fitted = fit(shape, [e for e in usable if part(e.group) == "train"], corpus, head.fitting, context)
    chosen = [e for e in usable if part(e.group) == "validation"]
    said = logits(fitted, chosen, corpus, context)
    calibrate(fitted, said, chosen)
    if head.catch:
        lean(fitted, probabilities(fitted, said, chosen, corpus), chosen, head.catch)
    return fitted


def _fold(
    sources: Sequence[str], config: HeadsConfig, rows: Mapping[str, Sequence[Example]], whole: Bundle, corpus: Corpus
) -> dict[str, Any]:
    """All heads as if the sources did not exist (a name that ends in * stands for all that begin so), measured on all their rows.

    A head that never saw them is taken over, one that saw them is trained again without; so what a head is told by others is clean too.
    """

    def outside(example: Example) -> bool:
        return any(
            example.source == name or (name.endswith("*") and example.source.startswith(name[:-1])) for name in sources
        )

    found: dict[str, Any] = {}
    for name, head in config.heads.items():
        held = [example for example in rows[name] if outside(example)]
        fitted = whole.heads[name]
        if held:
            corpus.prepare(rows[name])
            context = _context(head, corpus.bundle)
            inside = [example for example in rows[name] if not outside(example)]
            fitted = _fitted(fitted.shape, head, inside, corpus, context)
            found[name] = report.figures(fitted, held, corpus, context)
        corpus.bundle.add(name, whole.said[name], fitted)
    return {"never_trained_on": list(sources), "heads": found}


def _wraps(config: HeadsConfig, folder: Path, texts: Texts) -> tuple[Wraps, list[str], list[str]]:
    """Templates and sentences for training, and those kept for measuring."""
    templates = _lines(folder / config.templates) if config.templates else []
    trained = [text for place, text in enumerate(templates) if place % 3]
    if templates:
        trained += _lines(OWN / "frames.jsonl")
    planted, held = planted_sentences(folder / config.planted if config.planted else None)
    return Wraps(texts, trained, planted), templates[::3], held


def _lines(file: Path) -> list[str]:
    with file.open(encoding="utf-8") as lines:
        return [str(json.loads(line)["text"]) for line in lines]
