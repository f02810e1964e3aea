"""What a head is worth on rows it was not trained on: by language, by source, under attack; as JSON and as the card's tables."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from safeladder.verifiers.heads.model import Head
from safeladder.verifiers.measure.calibration import calibration_error
from safeladder.verifiers.measure.classification import f1, macro_f1
from safeladder.verifiers.measure.intervals import wilson
from safeladder.verifiers.measure.length import accuracy_matched
from safeladder.verifiers.measure.ranking import auroc
from safeladder.verifiers.training.examples import Example, part
from safeladder.verifiers.training.fit import Context, Corpus, logits, probabilities

_BEGIN: Final = "<!-- figures: written by safeladder train-verifier -->"
_END: Final = "<!-- end of figures -->"
_ATTACKED = 150  # rows that an attack is tried on
_SEED = 7


def figures(head: Head, held: Sequence[Example], corpus: Corpus, context: Context | None) -> dict[str, Any]:
    """Slice -> figures: `all`, `en`, `zh`, each source, and all contrasts. `caught`: positives called so; `flagged`: negatives called so;
    `matched`: accuracy among second texts of like length."""
    said = probabilities(head, logits(head, held, corpus, context), held, corpus)
    slices: dict[str, list[int]] = {"all": list(range(len(held)))}
    for row, example in enumerate(held):
        slices.setdefault(example.language, []).append(row)
        slices.setdefault(example.source, []).append(row)
        if example.source.startswith("contrast/"):
            slices.setdefault("contrasts", []).append(row)
    return {
        "slices": {name: _figures(said[rows], [held[row] for row in rows]) for name, rows in sorted(slices.items())}
    }


def _figures(said: torch.Tensor, held: Sequence[Example]) -> dict[str, float]:
    targets = np.array([example.target for example in held])
    if said.ndim == 2:  # several classes: the last against the others, and all
        chosen = said.argmax(1).numpy()
        last, truth = said[:, -1].double().numpy(), (targets == said.shape[1] - 1).astype(float)
        right = int((chosen == targets).sum())
        values = {
            "macro_f1": macro_f1(targets.tolist(), chosen.tolist()),
            "f1": f1(truth, (chosen == said.shape[1] - 1).astype(float)),
        }
    else:
        last, truth = said.double().numpy(), targets.astype(float)
        right = int(((last >= 0.5) == (truth == 1)).sum())
        values = {"f1": f1(truth, last)}
    low, high = wilson(right, len(held))
    values |= {
        "rows": len(held),
        "positive": truth.mean(),
        "auroc": auroc(truth, last),
        "accuracy": right / len(held),
        "low": low,
        "high": high,
    }
    yes = last >= 0.5
    values |= {
        "ece": calibration_error(truth, last),
        "caught": _mean(yes[truth == 1]),
        "flagged": _mean(yes[truth == 0]),
    }
    length = np.array([float(len(example.second)) for example in held])
    if said.ndim == 1 and length.any():
        values["matched"] = accuracy_matched(truth, last, length)
    return {key: round(float(value), 4) for key, value in values.items() if value == value}  # nan: one class only


def _mean(said: np.ndarray[Any, Any]) -> float:
    return float(said.mean()) if len(said) else float("nan")


def attacks(
    head: Head,
    examples: Sequence[Example],
    corpus: Corpus,
    context: Context | None,
    templates: Sequence[str],
    planted: Sequence[str],
) -> dict[str, float]:
    """Held-out rows wrapped in templates, or with an instruction planted in the second text, that training never saw.

    `*_before` and `*_after`: share of positives (or of the right class) found; `planted_changed`: share of verdicts that changed.
    """
    draw = random.Random(_SEED)
    held = [e for e in examples if part(e.group) == "test" and e.wraps]
    result: dict[str, float] = {}
    if templates and held and head.shape.reads != "second":
        rows = draw.sample([e for e in held if e.target == 1], min(_ATTACKED, sum(e.target == 1 for e in held)))
        wrapped = [_with(e, first=_filled(draw.choice(templates), e.first)) for e in rows]
        before, after = _decisions(head, rows, corpus, context), _decisions(head, wrapped, corpus, context)
        result |= {
            "wrapped_rows": len(rows),
            "wrapped_before": float((before == 1).mean()),
            "wrapped_after": float((after == 1).mean()),
        }
        benign = draw.sample([e for e in held if e.target == 0], min(_ATTACKED, sum(e.target == 0 for e in held)))
        alarms = _decisions(
            head, [_with(e, first=_filled(draw.choice(templates), e.first)) for e in benign], corpus, context
        )
        result["wrapped_false_alarms"] = float((alarms == 1).mean())
    if planted and held and head.shape.reads != "first":
        rows = draw.sample(held, min(2 * _ATTACKED, len(held)))
        after_rows = [_with(e, second=_planted(e.second, draw.choice(planted), draw)) for e in rows]
        before, after = _decisions(head, rows, corpus, context), _decisions(head, after_rows, corpus, context)
        result |= {"planted_rows": len(rows), "planted_changed": float((before != after).mean())}
    return {key: round(value, 4) for key, value in result.items()}


def _with(example: Example, **changes: str) -> Example:
    return replace(example, **changes)  # type: ignore[arg-type]


def _planted(text: str, sentence: str, draw: random.Random) -> str:
    """The sentence on a line of its own, somewhere in the text."""
    lines = text.split("\n")
    lines.insert(draw.randint(0, len(lines)), sentence)
    return "\n".join(lines)


def _filled(template: str, text: str) -> str:
    return template.replace("{prompt}", text)


def _decisions(head: Head, rows: Sequence[Example], corpus: Corpus, context: Context | None) -> np.ndarray[Any, Any]:
    corpus.prepare(rows)
    said = probabilities(head, logits(head, rows, corpus, context), rows, corpus)
    chosen: np.ndarray[Any, Any] = (said >= 0.5).long().numpy() if said.ndim == 1 else said.argmax(1).numpy()
    return chosen


def write_card(path: Path, found: dict[str, Any]) -> None:
    """Puts the tables between the card's marks; a card without marks gets them at its end."""
    text = path.read_text(encoding="utf-8") if path.is_file() else f"# Card: {path.stem}\n"
    if _BEGIN not in text:
        text = f"{text.rstrip()}\n\n{_BEGIN}\n{_END}\n"
    before, _, rest = text.partition(_BEGIN)
    path.write_text(f"{before}{_BEGIN}\n{tables(found)}\n{_END}{rest.partition(_END)[2]}", encoding="utf-8")


def tables(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    columns = ("rows", "positive", "auroc", "accuracy", "f1", "macro_f1", "ece", "caught", "flagged", "matched")
    lines = [f"Version `{found['version']}`."]
    for name, result in found["heads"].items():
        lines += ["", f"**{name}**, held-out rows of sources trained on:", "", _header(columns)]
        lines += [_line(label, figures, columns) for label, figures in result["slices"].items()]
        if "baseline" in result:
            shares = ", ".join(f"{part} {share:.3f}" for part, share in result["baseline"].items())
            lines += ["", f"Accuracy of TF-IDF with logistic regression on the same rows: {shares}."]
        if result.get("attacks"):
            lines += [
                "",
                f"**{name}** under attack: "
                + ", ".join(f"{key} {value:g}" for key, value in result["attacks"].items())
                + ".",
            ]
    for fold in found.get("folds", ()):
        for name, result in fold["heads"].items():
            lines += ["", f"**{name}**, trained without {', '.join(fold['never_trained_on'])}, on all of their rows:"]
            lines += ["", _header(columns)]
            lines += [_line(label, figures, columns) for label, figures in result["slices"].items()]
    return "\n".join(lines)


def _header(columns: Sequence[str]) -> str:
    return f"| slice | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}"


def _line(label: str, figures: dict[str, float], columns: Sequence[str]) -> str:
    cells = [
        "" if column not in figures else f"{figures[column]:.3f}" if column != "rows" else f"{figures[column]:.0f}"
        for column in columns
    ]
    return f"| {label} | {' | '.join(cells)} |"
