"""The sub-command `safeladder evaluate`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import msgspec

from safeladder.launch.evaluation import table
from safeladder.launch.evaluation.compare import comparison
from safeladder.launch.evaluation.run import evaluate
from safeladder.launch.evaluation.settings import load


def run(chosen: argparse.Namespace) -> int:
    """0; 1 when a suite lost more than a tenth of its outcomes to failures."""
    if chosen.compare is not None:
        found = comparison(*chosen.compare)
        if chosen.json:
            _print({name: {key: dataclasses.asdict(d) for key, d in each.items()} for name, each in found.items()})
        else:
            table.show_comparison(found, [str(path.name) for path in chosen.compare], sys.stdout)
        return 0
    named = chosen.file is not None and "=" not in chosen.file
    file = Path(chosen.file) if named else None
    overrides = [*([] if named or chosen.file is None else [chosen.file]), *chosen.overrides]
    report = evaluate(load(file, overrides), sys.stderr)
    if chosen.json:
        _print(report.plain())
    else:
        table.show(report, sys.stdout, chosen.parts)
    lost = [found["failed"].value for found in report.suites.values() if "failed" in found]
    return int(any(share > 0.1 for share in lost))


def _print(value: object) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value)).decode() + "\n")
