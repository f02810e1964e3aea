"""Sections on the verifiers: whether they agree, how often they failed, and what they said of which answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

import numpy as np

from safeladder.launch.report.page import details, section, table
from safeladder.launch.view.state import RunView

FEWEST: Final = 5  # pairs below which a correlation is not told
EXAMPLES: Final = 3  # of each verifier and label


def agreement(views: Sequence[RunView]) -> str:
    """By sample where the logs hold verdicts, else by the means of the steps; the text says which."""
    parts = []
    for view in views:
        by_sample = view.judged.scores()
        scores: Mapping[str, Mapping[Any, float]] = by_sample or _step_means(view)
        unit = (
            f"samples of {len(view.judged.groups)} groups"
            if by_sample
            else "means of steps, as the logs hold no single verdicts"
        )
        names = sorted(name for name in scores if _varies(scores[name]))
        rows = [[name, *(_together(scores[name], scores[other], name == other) for other in names)] for name in names]
        parts.append(f"<h3>{escape(view.path.name)}: over {escape(unit)}</h3>" + table(("", *names), rows))
        failed = [[verifier, status, count] for (verifier, status), count in sorted(view.failed_verdicts.items())]
        parts.append(table(("verifier", "failure", "verdicts"), failed) if failed else "<p>No verdict failed.</p>")
    intro = (
        "Correlation (Pearson's r) of two verifiers' scores where both judged, n in brackets: near 1 where they rate the same answers "
        "high, below 0 where one is high as the other is low. Verifiers that always said the same are left out."
    )
    return section("Verifier agreement", intro, *parts)


def examples(views: Sequence[RunView]) -> str:
    """Answers by verifier and label, from the sample of groups whose texts were logged."""
    parts = []
    for view in views:
        kinds: dict[str, list[str]] = {}
        for identity, group in sorted(view.judged.groups.items()):
            for verifier, verdicts in group.verdicts.items():
                for sample, (score, label) in verdicts.items():
                    chosen = kinds.setdefault(f"{verifier}: {label or _level(score)}", [])
                    if group.prompt is not None and sample < len(group.answers) and len(chosen) < EXAMPLES:
                        said = "no score" if score is None else f"score {score:.3g}"
                        head = f"<p class='soft'>{escape(identity)}, sample {sample}, {said}</p>"
                        chosen.append(
                            f"{head}<pre><b>{escape(group.prompt)}</b></pre><pre>{escape(group.answers[sample])}</pre>"
                        )
        shown = [details(kind, "".join(found)) for kind, found in sorted(kinds.items()) if found]
        none = f"<p class='none'>{escape(view.path.name)} has logged no texts (logs.texts).</p>"
        parts.append(f"<h3>{escape(view.path.name)}</h3>" + "".join(shown) if shown else none)
    return section("Examples by verdict", "Model output: it may be false, offensive or dangerous.", *parts)


def _step_means(view: RunView) -> dict[str, dict[int, float]]:
    found = {}
    for name in view.steps.names("channel:"):
        values = view.steps.column(name)
        found[name.partition(":")[2]] = {int(row): float(values[row]) for row in np.flatnonzero(np.isfinite(values))}
    return found


def _level(score: float | None) -> str:
    return "no verdict" if score is None else "high" if score >= 0.75 else "low" if score <= 0.25 else "middle"


def _varies(scores: Mapping[Any, float]) -> bool:
    return len(scores) >= FEWEST and float(np.std(list(scores.values()))) > 1e-9


def _together(one: Mapping[Any, float], other: Mapping[Any, float], same: bool) -> str:
    if same:
        return "1"
    both = [place for place in one if place in other]
    first, second = (np.array([scores[place] for place in both]) for scores in (one, other))
    if len(both) < FEWEST or first.std() < 1e-9 or second.std() < 1e-9:
        return f"- ({len(both)})"
    return f"{np.corrcoef(first, second)[0, 1]:.2f} ({len(both)})"
