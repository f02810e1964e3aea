"""The report of a training: what went in, what was taken out and why, and how the result does on rows it never saw."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safeladder.verifiers.measure import Figures


@dataclass(frozen=True)
class HeldOut:
    """rows: by part. removed: by reason. figures: name -> figures of test rows (`all`, `language en`, `source x`).
    numbers: anything else that was measured. notes: sentences for the reader. folder: where the model stands."""

    kind: str
    folder: Path
    rows: Mapping[str, int]
    removed: Mapping[str, int] = field(default_factory=dict)
    figures: Mapping[str, Figures] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "kind": self.kind,
            "rows": dict(self.rows),
            "removed": dict(self.removed),
            "figures": {name: figures.plain() for name, figures in self.figures.items()},
            "numbers": {name: None if value != value else value for name, value in self.numbers.items()},
            "notes": list(self.notes),
        }

    def markdown(self) -> str:
        """The same as a page."""
        lines = [f"# Held-out report: {self.kind}", ""]
        lines += ["| rows | |", "|---|---:|", *(f"| {part} | {count:,} |" for part, count in self.rows.items())]
        lines += [f"| removed: {reason} | {count:,} |" for reason, count in self.removed.items()]
        if self.figures:
            lines += ["", "| test rows | rows | positive | accuracy (95 %) | F1 | AUROC | ECE | Brier | kappa |"]
            lines += ["|---|---:|---:|---|---:|---:|---:|---:|---:|"]
            lines += [f"| {name} | {_cells(figures)} |" for name, figures in self.figures.items()]
        if self.numbers:
            lines += [
                "",
                "| measured | |",
                "|---|---:|",
                *(f"| {name} | {_number(value)} |" for name, value in self.numbers.items()),
            ]
        return "\n".join([*lines, "", *self.notes, ""])

    def write(self) -> None:
        """`report.json` and `report.md` in the model's folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "report.json").write_text(
            json.dumps(self.plain(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (self.folder / "report.md").write_text(self.markdown(), encoding="utf-8")


def _cells(figures: Figures) -> str:
    value, low, high = figures.accuracy
    numbers = (figures.f1, figures.auroc, figures.ece, figures.brier, figures.kappa)
    accuracy = f"{_number(value)} ({low:.3f} to {high:.3f})"
    return " | ".join([f"{figures.rows:,}", f"{figures.positives:,}", accuracy, *map(_number, numbers)])


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.3f}"
