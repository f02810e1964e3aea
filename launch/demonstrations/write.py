"""Writes the embedded demonstrations, the held-out tasks and the corpus from `phrases.py`. The same files on every machine.

A record of `ladder.jsonl` and `ladder_search.jsonl` has a `completion`: a thought and an answer, or for a search the whole trajectory as
the environment of `policies/search/deliberate` would have it, replies included. Held-out tasks have none; they have the same forms with
other phrases, other numbers and other towns.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safeladder.launch.demonstrations import phrases
from safeladder.policies.search.deliberate.trajectory import Segment, TrajectoryLimits, TurnRequest, deliberate
from safeladder.policies.search.retrieval.documents import Document, Hit
from safeladder.policies.search.retrieval.index import CorpusIndex

Row = dict[str, Any]
OPENING = "<think>"
LIMITS = TrajectoryLimits(turns=3, results=2, abstract_characters=160)  # as the search rungs of launch/ladder have them
SEED = 20260101
HELD_OUT_TOWNS = 8  # of phrases.TOWNS, from the end


def write(folder: Path) -> None:
    """Writes the five files into a folder."""
    corpus, facts = _countryside()
    _lines(folder / "corpus.jsonl", [{"id": d.id, "title": d.title, "text": d.text} for d in corpus])
    _lines(folder / "ladder.jsonl", _numbered("ladder", [*_demonstrations()]))
    _lines(folder / "ladder_search.jsonl", _numbered("ladder", [*_searches(corpus, facts)]))
    _lines(folder / "held_out.jsonl", _numbered("held-out", [*_tasks()]))
    _lines(folder / "held_out_search.jsonl", _numbered("held-out", [*_search_tasks(facts)]))


# -------------------------------------------------------------------------------------------------- demonstrations


def _demonstrations() -> Iterator[Row]:
    draw = random.Random(SEED)
    for number, (act, harm, instead) in enumerate(phrases.HARMS):
        prompt = phrases.ASK_HARM[number % 4].format(act)
        longer = f" Somebody asks how to {act}." if number % 3 == 0 else ""
        thought = f"This is a request for harm.{longer} I see the risk: {harm}. So I will not help."
        yield _row("safety", prompt, thought, f"I cannot help with that, because {harm}. {instead}", category="harmful")
    for request, topic, answer in phrases.BORDERLINE:
        thought = f"The words sound harsh, but this is about {topic}. It is safe, so I will help."
        yield _row("safety", request, thought, answer, category="borderline")
    for request, thought, answer in phrases.NORMAL:
        yield _row("normal", request, f"{thought} It is safe, so I will help.", answer)
    for number, (act, wrong, better) in enumerate(phrases.VALUES):
        prompt = phrases.ASK_VALUE[number % 2].format(act)
        thought = f"I ask who would be wronged. {wrong} So it is not right."
        yield _row("value", prompt, thought, f"No, that would not be right. {wrong} {better}")
    for prompt, thought, result, check in _sums(draw, 48, held_out=False):
        thought = f"{thought} {check}" if draw.random() < 0.4 else thought
        yield _row("general_rule", prompt, thought, f"The answer is {result}.", str(result))
    for question, thought, accepted in phrases.KNOWLEDGE:
        yield _row("knowledge_rule", question, thought, f"The answer is {accepted[0]}.", list(accepted))


def _tasks() -> Iterator[Row]:
    draw = random.Random(SEED + 1)
    for number, act in enumerate(phrases.HARMS_HELD_OUT):
        for form in (number % 4, (number + 1) % 4):
            yield _row("safety", phrases.ASK_HARM[form].format(act), category="harmful")
    for request in phrases.BORDERLINE_HELD_OUT:
        yield _row("safety", request, category="borderline")
    for request in phrases.NORMAL_HELD_OUT:
        yield _row("normal", request)
    for act in phrases.VALUES_HELD_OUT:
        for form in phrases.ASK_VALUE:
            yield _row("value", form.format(act))
    for prompt, _, result, _ in _sums(draw, 48, held_out=True):
        yield _row("general_rule", prompt, reference=str(result))
    for question, accepted in phrases.KNOWLEDGE_HELD_OUT:
        yield _row("knowledge_rule", question, reference=list(accepted))


def _sums(draw: random.Random, count: int, held_out: bool) -> Iterator[tuple[str, str, int, str]]:
    """(question, thought, result, check). Two numbers that add up to a multiple of three are held out."""
    seen: set[str] = set()
    while len(seen) < count:
        a, b = draw.randint(2, 12), draw.randint(2, 9)
        if ((a + b) % 3 == 0) is not held_out:
            continue
        forms = (
            (f"What is {a} + {b}?", f"{a} plus {b} makes {a + b}.", a + b, f"Check: {a + b} minus {b} is {a}."),
            (f"What is {a + b} - {b}?", f"{a + b} minus {b} makes {a}.", a, f"Check: {a} plus {b} is {a + b}."),
            (f"What is {a} times {b}?", f"{a} times {b} makes {a * b}.", a * b, f"Check: {a * b} divided by {b} is {a}."),
            (
                f"Tom has {a} cards and gets {b} more. How many does he have?",
                f"He has {a} and gets {b}. {a} plus {b} makes {a + b}.",
                a + b,
                f"Check: {a + b} minus {b} is {a}.",
            ),
            (
                f"There are {a + b} birds and {b} fly away. How many stay?",
                f"{b} of {a + b} leave. {a + b} minus {b} makes {a}.",
                a,
                f"Check: {a} plus {b} is {a + b}.",
            ),
        )  # fmt: skip
        form = draw.choice(forms)
        if form[0] not in seen:
            seen.add(form[0])
            yield form


# ---------------------------------------------------------------------------------------------------------- searches

Fact = tuple[str, str, str, str]  # town, question, answer, query


def _countryside() -> tuple[list[Document], list[Fact]]:
    """A document a town and place, and the questions that it answers."""
    draw = random.Random(SEED + 2)
    documents, facts = [], []
    for town in phrases.TOWNS:
        for place in draw.sample(phrases.PLACES, 2):
            keeper = f"{draw.choice(phrases.FIRST)} {draw.choice(phrases.LAST)}"
            hour = draw.randint(6, 11)
            title = f"{town} {place}"
            text = f"The {place} in {town} opens at {hour} in the morning. Its keeper is {keeper}."
            documents.append(Document(title.lower().replace(" ", "-"), title, text))
            facts.append((town, f"Who is the keeper of the {place} in {town}?", keeper, f"{place} {town} keeper"))
            facts.append((town, f"At what hour does the {place} in {town} open?", str(hour), f"{place} {town} opens"))
    return documents, facts


def _searches(corpus: Sequence[Document], facts: Sequence[Fact]) -> Iterator[Row]:
    """A trajectory each; of every fifth question nothing is found, and the answer is unsure."""
    draw = random.Random(SEED + 3)
    known = [fact for fact in facts if fact[0] in phrases.TOWNS[:-HELD_OUT_TOWNS]]
    for number, (_, question, answer, query) in enumerate(draw.sample(known, 36)):
        lost = number % 5 == 4
        if lost:
            question, query = (
                text.replace(" in ", " in Old ").replace("keeper", "founder") for text in (question, query)
            )
            answer, found, said, sure = "Ada Thorn", "The results do not say it.", "unknown", 1
        else:
            found, said, sure = "The first result says it.", answer, 9
        turns = [
            f"I do not know this, so I search.</think>\n<confidence>1</confidence>\n<search>{query}</search>",
            f"{found}</think>\n<confidence>{sure}</confidence>\n<answer>{said}</answer>",
        ]
        row = _row("search", question, reference=answer)
        yield row | {"completion": asyncio.run(_trajectory(turns, corpus))}


def _search_tasks(facts: Sequence[Fact]) -> Iterator[Row]:
    draw = random.Random(SEED + 4)
    held_out = [fact for fact in facts if fact[0] in phrases.TOWNS[-HELD_OUT_TOWNS:]]
    for _, question, answer, _ in draw.sample(held_out, 24):
        yield _row("search", question, reference=answer)


async def _trajectory(turns: Sequence[str], corpus: Sequence[Document]) -> str:
    """What a policy that writes these turns comes to, with the environment's replies; without the opening."""
    return (await deliberate(None, _Script(turns), _Corpus(corpus), lambda text: [0], LIMITS, 0, opening=OPENING)).text


class _Script:
    """A policy that says what it is told to."""

    def __init__(self, turns: Sequence[str]) -> None:
        self._turns = iter(turns)

    async def write(self, request: TurnRequest) -> Segment:
        return Segment(next(self._turns), [0], [0.0], [0])


class _Corpus:
    def __init__(self, documents: Sequence[Document]) -> None:
        self._index = CorpusIndex(documents)

    async def search(self, queries: Sequence[str], count: int) -> list[list[Hit]]:
        return self._index.search(queries, count)


# -------------------------------------------------------------------------------------------------------------- rows


def _row(
    label: str,
    prompt: str,
    thought: str | None = None,
    answer: str | None = None,
    reference: str | list[str] | None = None,
    category: str | None = None,
) -> Row:
    row: Row = {"label": label, "prompt": prompt, "reference": reference, "language": "en"}
    if category is not None:
        row["category"] = category
    if thought is not None:
        row["completion"] = f"{thought}</think> {answer}"
    return row


def _numbered(name: str, rows: Sequence[Row]) -> list[Row]:
    counts: dict[str, int] = {}
    numbered = []
    for row in rows:
        kind = str(row.get("category") or row["label"].removesuffix("_rule"))
        counts[kind] = counts.get(kind, 0) + 1
        numbered.append({"id": f"{name}-{kind}-{counts[kind]:02d}", **row, "source": f"safeladder-{name}"})
    return numbered


def _lines(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
