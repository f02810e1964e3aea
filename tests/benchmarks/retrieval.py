"""How well the local corpus is searched, and what the filter of retrieved text takes out.

    python tests/benchmarks/retrieval.py DATA [--markdown docs/deliberation.md]

DATA holds `corpus/`, `tasks/` and `injections/` as in shared/data. A question counts as found at k when the document that its task
names is among the first k. English is searched together with the distractors.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from safeladder.policies.search.retrieval.documents import read
from safeladder.policies.search.retrieval.index import CorpusIndex
from safeladder.policies.search.retrieval.untrusted import addresses_the_model, clean, sentences

DEPTHS = (1, 5, 10)
BEGIN, END = "<!-- results: written by tests/benchmarks/retrieval.py -->", "<!-- end of results -->"
CORPORA = {
    "English, with distractors": (("xquad-en", "wiki-distractors"), "xquad-en"),
    "Chinese": (("xquad-zh",), "xquad-zh"),
    "Chinese, with all of the above": (("xquad-zh", "xquad-en", "wiki-distractors"), "xquad-zh"),
}


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def retrieval(data: Path, corpora: Sequence[str], task: str) -> list[str]:
    began = time.perf_counter()
    index = CorpusIndex(read([data / "corpus" / f"{name}.jsonl" for name in corpora]))
    built = time.perf_counter() - began
    tasks = rows(data / "tasks" / f"{task}.jsonl")
    began = time.perf_counter()
    found = index.search([row["prompt"] for row in tasks], max(DEPTHS))
    seconds = time.perf_counter() - began
    ranks = np.array(
        [
            next((place for place, hit in enumerate(hits) if hit.document.id == row["document"]), max(DEPTHS))
            for hits, row in zip(found, tasks, strict=True)
        ]
    )
    shares = [f"{float((ranks < depth).mean()):.3f}" for depth in DEPTHS]
    return [str(len(index)), str(len(tasks)), *shares, f"{len(tasks) / seconds:.0f}", f"{built:.1f} s"]


def filtering(data: Path) -> list[str]:
    stripped: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for row in rows(data / "injections" / "bipia.jsonl"):
        total[row["family"]] += 1
        stripped[row["family"]] += addresses_the_model(row["text"])
    lines = [f"| {family} | {stripped[family]} of {total[family]} |" for family in total]
    lines.append(f"| all | {stripped.total()} of {total.total()} |")
    for name in ("xquad-en", "xquad-zh", "wiki-distractors"):
        texts = [document.text for document in read([data / "corpus" / f"{name}.jsonl"])]
        harmed = sum(clean(text, 10**6).removed > 0 for text in texts)
        removed = sum(clean(text, 10**6).removed for text in texts)
        whole = sum(len(sentences(text)) for text in texts)
        lines.append(f"| clean paragraphs of {name} that lose a sentence | {harmed} of {len(texts)} |")
        lines.append(f"| clean sentences of {name} lost | {removed} of {whole} |")
    return lines


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--markdown", type=Path)
    chosen = arguments.parse_args()
    lines = ["| corpus | documents | questions | R@1 | R@5 | R@10 | queries/s | built in |", "|" + "---|" * 8]
    for name, (corpora, task) in CORPORA.items():
        lines.append(f"| {name} | {' | '.join(retrieval(chosen.data, corpora, task))} |")
    lines += ["", "| filtered | |", "|---|---|", *filtering(chosen.data)]
    print("\n".join(lines))
    if chosen.markdown:
        before, _, rest = chosen.markdown.read_text("utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        chosen.markdown.write_text(f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
