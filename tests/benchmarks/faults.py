"""How soon each of eight faults of a live run is named, and in which words: the table of docs/monitor.md.

    python tests/benchmarks/faults.py [--rounds 3]

Each round is a run of the tiny model by real processes. The time is from the provocation to the words, or from the moment given.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import faults
from running import Running


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=1)
    rounds: list[dict[str, faults.Named]] = []
    for _ in range(arguments.parse_args().rounds):
        with tempfile.TemporaryDirectory() as folder:
            os.environ.update(faults.environment(Path(folder)))
            with Running(Path(folder), *faults.SETTINGS) as running:
                rounds.append({})
                for named in faults.Faults(running, Path(folder)).all():
                    found = dataclasses.replace(named, words=named.words.replace(str(running.run.path), "RUN"))
                    rounds[-1][found.fault] = found
                    print(
                        f"{found.seconds:5.1f} s  {found.fault}: {found.by}: {found.words}", file=sys.stderr, flush=True
                    )
    print("| fault | named after (s) | by | in words |\n|---|---|---|---|")
    for fault, found in rounds[-1].items():
        seconds = ", ".join(f"{other[fault].seconds:.1f}" for other in rounds)
        since = f" ({found.effect})" if found.effect else ""
        print(f"| {fault}{since} | {seconds} | {found.by} | {found.words} |")


if __name__ == "__main__":
    main()
