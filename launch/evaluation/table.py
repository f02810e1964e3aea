"""An evaluation, and the comparison of two, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TextIO

from rich.markup import escape
from rich.table import Table

from safeladder.launch.evaluation.run import Report
from safeladder.launch.evaluation.statistics import Difference, Measure
from safeladder.launch.terminal import console


def show(report: Report, stream: TextIO, parts: bool = False) -> None:
    """A row a measure. parts: also those of slices, `measure[part]`."""
    out = console(stream)
    who = report.settings.endpoint.model if report.settings.endpoint else report.settings.policy
    out.print(f"{who}, strategy {report.settings.strategy}", markup=False)
    if not report.real:
        out.print("the engine invents its tokens: nothing here is about a model", markup=False)
    table = Table(box=None)
    for heading in ("suite", "measure", "value", "95 %", "n"):
        table.add_column(heading, justify="left" if heading in ("suite", "measure") else "right", no_wrap=True)
    for suite, found in report.suites.items():
        for name, measure in found.items():
            if parts or "[" not in name:
                table.add_row(suite, escape(name), *_figures(measure))
    out.print(table)
    if report.folder is not None:
        out.print(f"written to {report.folder}", markup=False)


def show_comparison(found: Mapping[str, Mapping[str, Difference]], names: Sequence[str], stream: TextIO) -> None:
    """A row a measure that both runs have: values, the difference with its interval, and McNemar's p where there is one."""
    out = console(stream)
    table = Table(box=None)
    for heading in ("suite", "measure", *names, "difference", "95 %", "p", "n"):
        table.add_column(heading, justify="left" if heading in ("suite", "measure") else "right", no_wrap=True)
    for suite, measures in found.items():
        for name, each in measures.items():
            interval = f"{_number(each.low)} .. {_number(each.high)}"
            p = "-" if each.p is None else f"{each.p:.4f}"
            values = (_number(each.first), _number(each.second), _number(each.value))
            table.add_row(suite, escape(name), *values, interval, p, str(each.n))
    out.print(table)


def _figures(measure: Measure) -> tuple[str, str, str]:
    return _number(measure.value), f"{_number(measure.low)} .. {_number(measure.high)}", str(measure.n)


def _number(value: float) -> str:
    if value != value:
        return "-"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"
