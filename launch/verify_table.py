"""The report of `safeladder verify` for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TextIO

from rich.console import Console
from rich.table import Table

from safeladder.launch.terminal import console
from safeladder.launch.verify import Report, VerifierReport
from safeladder.verifiers.appraisal import Appraisal
from safeladder.verifiers.attacks.suite import Effect
from safeladder.verifiers.measure import Figures

SHOWN: Final = 10  # malformed lines; --json has them all

Share = tuple[float, float, float]


def show(report: Report, stream: TextIO) -> None:
    """Tables of every verifier, then the lines that could not be read."""
    out = console(stream)
    for verifier in report.verifiers:
        _verifier(verifier, out)
    for fault in report.malformed[:SHOWN]:
        out.print(f"malformed: {fault}", markup=False)
    if len(report.malformed) > SHOWN:
        out.print(f"malformed: {len(report.malformed) - SHOWN} more lines")


def _verifier(report: VerifierReport, out: Console) -> None:
    options = "".join(f" {key}={value}" for key, value in report.options.items())
    out.print(f"{report.verifier} {report.version}{options}: {report.rows} rows", markup=False)
    out.print("statuses  " + _counts(report.statuses), markup=False)
    if report.labels:
        out.print("labels    " + _counts(report.labels), markup=False)
    if report.problems:
        out.print("problems  " + _counts(report.problems), markup=False)
    for field in report.fields:
        _field(field, out)
    order = report.order
    out.print(
        f"order     {order.changed} of {order.rows} rows changed in other orders and batches, "
        f"scores by at most {order.largest_difference:.1e} of their range",
        markup=False,
    )
    for name, effects in report.effects.items():
        _effects(name, effects, out)


def _field(appraisal: Appraisal, out: Console) -> None:
    lost = f", without a score: {_counts(appraisal.without_score)}" if appraisal.without_score else ""
    table = Table(title=f"{appraisal.field} (1 is {appraisal.polarity}{lost})", title_justify="left", box=None)
    for heading in (
        "",
        "rows",
        "positive",
        "accuracy",
        "caught",
        "flagged",
        "F1",
        "AUROC",
        "AP",
        "ECE",
        "ECE mass",
        "Brier",
        "kappa",
    ):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    table.add_row("all", *_row(appraisal.all))
    for column, parts in appraisal.by.items():
        if len(parts) > 1 or column == "source":
            for value, figures in parts.items():
                table.add_row(f"{column} {value}", *_row(figures))
    out.print(table)
    length = appraisal.length
    out.print(
        f"length    correlation with the score {_plain(length.within_positives)} among positives, "
        f"{_plain(length.within_negatives)} among negatives; AUROC {_plain(length.auroc)}, at matched length "
        f"{_plain(length.auroc_matched)}, of length alone {_plain(length.auroc_of_length)}",
        markup=False,
    )


def _row(figures: Figures) -> list[str]:
    shares = [_share(each) for each in (figures.accuracy, figures.caught, figures.flagged)]
    numbers = (
        figures.f1,
        figures.auroc,
        figures.average_precision,
        figures.ece,
        figures.ece_mass,
        figures.brier,
        figures.kappa,
    )
    return [str(figures.rows), str(figures.positives), *shares, *(_plain(number) for number in numbers)]


def _effects(field: str, effects: Sequence[Effect], out: Console) -> None:
    table = Table(title=f"attacks on {field} (* ours)", title_justify="left", box=None)
    headings = (
        "",
        "rows",
        "lost",
        "changed %",
        "relabelled %",
        "caught % before",
        "after",
        "p",
        "flagged % before",
        "after",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for effect in effects:
        before_and_after = (_share(effect.caught_before), _share(effect.caught_after), f"{effect.p:.3f}")
        table.add_row(
            f"{effect.attack}{'*' if effect.ours else ''}",
            *(str(effect.rows), str(effect.lost), _share(effect.changed), _share(effect.relabelled)),
            *before_and_after,
            *(_share(effect.flagged_before), _share(effect.flagged_after)),
        )
    out.print(table)


def _counts(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {count}" for name, count in ordered)


def _share(share: Share) -> str:
    value, low, high = share
    return "-" if value != value else f"{100 * value:.1f} ({100 * low:.0f}-{100 * high:.0f})"


def _plain(value: float) -> str:
    return "-" if value != value else f"{value:.3f}"
