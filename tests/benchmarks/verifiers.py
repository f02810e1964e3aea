"""Verdicts per second and core of the embedded verifiers, by batch: `python tests/benchmarks/verifiers.py [--answers FILE]`.

One thread. Each batch is a group of eight answers to each prompt, as a run judges them. Answers are those of FILE (JSON lines with `prompt`
and `response`), or texts of this project of like length. Prints a table and the smallest batch within 5 % of the best.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import cycle, islice
from pathlib import Path

import torch

from safeladder.protocol.messages import Record
from safeladder.verifiers.contract import Item, Verifier
from safeladder.verifiers.registry import create

BATCHES = (1, 4, 8, 16, 32, 64, 128, 256)
GROUP = 8
SENTENCE = "First look at what you have, write down what is missing, and ask somebody who has done it before how long step {} takes. "


def items(file: Path | None, count: int) -> list[Item]:
    if file is None:
        rows = [
            (f"How do I plan task {n // GROUP}?", "".join(SENTENCE.format(n + k) for k in range(3)))
            for n in range(count)
        ]
    else:
        with file.open(encoding="utf-8") as lines:
            found = [json.loads(line) for line in islice(lines, count)]
        prompts = [str(row["prompt"]) for row in found[::GROUP]]
        rows = [(prompts[n // GROUP], str(row["response"])) for n, row in enumerate(found)]
    return [
        Item(Record(id=f"r{n}", label="safety", prompt=prompt, extra={"evidence": answer[:400]}), answer, n % GROUP)
        for n, (prompt, answer) in enumerate(islice(cycle(rows), count))
    ]


def rate(verifier: Verifier, judged: list[Item], batch: int, seconds: float) -> float:
    """Verdicts a second over at least `seconds` of work."""
    done, began = 0, time.perf_counter()
    for start in cycle(range(0, len(judged) - batch + 1, batch)):
        verifier.judge(judged[start : start + batch])
        done += batch
        if time.perf_counter() - began > seconds:
            break
    return done / (time.perf_counter() - began)


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--answers", type=Path)
    reader.add_argument("--seconds", type=float, default=3.0, help="for each batch size")
    reader.add_argument("--verifiers", nargs="+", default=["safety", "value", "grounded"])
    arguments = reader.parse_args()
    torch.set_num_threads(1)
    judged = items(arguments.answers, 512)
    print(f"answers of {sum(len(item.text) for item in judged) / len(judged):.0f} characters on average")
    print(
        f"| verifier | {' | '.join(str(batch) for batch in BATCHES)} | saturates at |\n|---|{'---:|' * (len(BATCHES) + 1)}"
    )
    for name in arguments.verifiers:
        verifier = create(name)
        verifier.judge(judged[:8])
        rates = {batch: rate(verifier, judged, batch, arguments.seconds) for batch in BATCHES}
        best = max(rates.values())
        knee = next(batch for batch, value in rates.items() if value >= 0.95 * best)
        print(f"| {name} | {' | '.join(f'{value:.0f}' for value in rates.values())} | {knee} |")


if __name__ == "__main__":
    main()
