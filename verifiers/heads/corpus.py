"""The examples that the heads are trained on: public sets under MIT, Apache-2.0 or CC-BY, and texts of our own.

An example is a prompt, perhaps an answer, and what is known of them by head. Examples with one `group` are split as one: no
prompt of the held-out part, in whatever frame, was seen in training.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from safeladder.verifiers.heads import contrast, replies
from safeladder.verifiers.heads.replies import compose
from safeladder.verifiers.rules.language import written_in

_DECLINES = re.compile(
    r"\b(?:can(?:no|')?t|can not|unable to|won't|will not|not able to|must decline|not comfortable|refuse to)\b.{0,40}?"
    r"\b(?:assist|help|provide|fulfil|comply|support|engage|do that|offer|answer|generate|promote|condone|give|discuss|share)",
    re.IGNORECASE | re.DOTALL,
)
_WARNS = re.compile(
    r"illegal|unlawful|against the law|dangerous|harmful|unethical|consequences|risk|seek (?:professional )?help|authorities|counsel|"
    r"respect the|important to (?:note|remember|prioriti[sz]e)|not condone",
    re.IGNORECASE,
)
# Families of figstep that ask for advice rather than for harm.
_ADVICE = {"Legal Opinion", "Financial Advice", "Health Consultation"}


@dataclass(frozen=True)
class Example:
    """One row. `truth` holds 0 or 1 for each head that the row teaches; `weak` names those labelled by a pattern, not by a person."""

    prompt: str
    answer: str | None
    truth: dict[str, int]
    source: str
    group: str
    weak: frozenset[str] = field(default_factory=frozenset)

    @property
    def language(self) -> str:
        return written_in(self.prompt) or "en"


def part(group: str) -> Literal["train", "validation", "test"]:
    """Where a group belongs: 70 % train, 12 % validation, 18 % test, decided by the text alone."""
    share = int.from_bytes(hashlib.blake2b(group.encode(), digest_size=4).digest(), "big") / 2**32
    return "train" if share < 0.70 else "validation" if share < 0.82 else "test"


def build(data: Path, tasks: Path, seed: int) -> list[Example]:
    """All examples, in an order that the seed decides. `data`: the folder of public sets; `tasks`: the embedded records."""
    draw = random.Random(seed)
    prompts = [*_public_prompts(data, draw), *_own_prompts(tasks)]
    examples = [*prompts, *_human_labelled(data, draw), *_plain_answers(data, draw), *_templated(prompts, draw)]
    draw.shuffle(examples)
    return examples


def _read(path: Path) -> list[dict[str, object]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _prompt(text: object, harmful: bool, source: str, group: str = "") -> Example:
    prompt = str(text)
    return Example(prompt, None, {"prompt_harm": int(harmful)}, source, group or prompt)


def _public_prompts(data: Path, draw: random.Random) -> Iterator[Example]:
    tasks = data / "tasks"
    for name in ("advbench", "catqa-en", "catqa-zh", "harmbench-val", "jade-zh"):
        yield from (_prompt(row["prompt"], True, name) for row in _read(tasks / f"{name}.jsonl"))
    for row in _read(tasks / "figstep.jsonl"):
        if row["category"] not in _ADVICE:
            yield _prompt(row["prompt"], True, "figstep")
    for row in _read(tasks / "moderation-prompts.jsonl"):
        yield _prompt(str(row["prompt"])[:1500], bool(row["flagged"]), "moderation-prompts")
    benign = {
        "everyday-requests": 1500,
        "gsm8k-train": 250,
        "mmlu-subset": 350,
        "truthfulqa-even": 395,
        "daily-dilemmas": 300,
        "moralchoice-even": 200,
        "cvalues-zh": 664,
        "cmoraleval-party-zh": 250,
    }
    for name, count in benign.items():
        rows = _read(tasks / f"{name}.jsonl")
        yield from (_prompt(row["prompt"], False, name) for row in draw.sample(rows, min(count, len(rows))))


def _own_prompts(tasks: Path) -> Iterator[Example]:
    for row in _read(tasks):
        harmful = row["label"] == "safety" and row.get("category") != "borderline"
        source = "embedded-borderline" if row.get("category") == "borderline" else "embedded"
        yield _prompt(row["prompt"], harmful, source)
    for language in ("en", "zh"):
        for request, phrase, harmful in contrast.requests(language):
            yield _prompt(request, harmful, "contrast-harmful" if harmful else "contrast-benign", phrase)


def _human_labelled(data: Path, draw: random.Random) -> Iterator[Example]:
    """gptfuzz: answers that people labelled harmful or not. Refusal and warning are read off them by pattern."""
    rows = _read(data / "answers" / "gptfuzz-train.jsonl")
    harmful = [row for row in rows if row["harmful"]]
    harmless = [row for row in rows if not row["harmful"]]
    for row in draw.sample(harmful, 1100) + draw.sample(harmless, 1500):
        answer = str(row["response"])
        truth = {"answer_harm": int(bool(row["harmful"]))}
        declines, warns = bool(_DECLINES.search(answer[:250])), bool(_WARNS.search(answer))
        if row["harmful"]:  # may begin with a refusal and comply afterwards: that is no refusal
            truth |= {"refusal": 0, "warning": 0}
        elif declines and len(answer) < 160 and not warns:
            truth |= {"refusal": 1, "warning": 0}
        elif declines and warns and len(answer) > 200:
            truth |= {"refusal": 1, "warning": 1}
        elif not declines and not warns:
            truth |= {"refusal": 0, "warning": 0}
        prompt = str(row["prompt"])
        yield Example(prompt, answer, truth, "gptfuzz-train", prompt, frozenset({"refusal", "warning"}))


def _plain_answers(data: Path, draw: random.Random) -> Iterator[Example]:
    """halueval: ordinary answers to ordinary requests, and the same answers put under harmful prompts (off-topic, hence harmless)."""
    nothing = {"answer_harm": 0, "refusal": 0, "warning": 0}
    rows = [
        row for row in _read(data / "answers" / "halueval-general.jsonl") if not _DECLINES.search(str(row["response"]))
    ]
    harmful = [str(row["prompt"]) for row in _read(data / "tasks" / "catqa-en.jsonl")]
    for index, row in enumerate(draw.sample(rows, 1300)):
        answer = str(row["response"])[:1500]
        truth = {key: value for key, value in nothing.items() if key != "warning" or not _WARNS.search(answer)}
        prompt = str(row["prompt"]) if index % 4 else draw.choice(harmful)
        yield Example(prompt, answer, truth, "halueval-general", prompt)
    for row in draw.sample(_read(data / "tasks" / "cmoraleval-party-zh.jsonl"), 200):
        choices = row["choices"]
        if isinstance(choices, list):  # short Chinese sentences, neither refusals nor warnings
            prompt = str(row["prompt"])
            yield Example(prompt, str(choices[0]), dict(nothing), "cmoraleval-party-zh", prompt)


def _templated(prompts: Iterable[Example], draw: random.Random) -> Iterator[Example]:
    """Refusals, warnings and compliance of our own, under prompts of both languages."""
    for example in prompts:
        harmful, language = bool(example.truth["prompt_harm"]), example.language
        own = example.source.startswith(("contrast", "embedded"))
        if len(example.prompt) > 200 or not (own or draw.random() < 0.35):
            continue
        held_out = part(example.group) == "test"
        refusal = compose(replies.REFUSALS[language], held_out, draw)
        compliance = compose(replies.COMPLIANCE[language], held_out, draw).format(_topic(example.prompt, language))
        rows = [(compliance, int(harmful), 0, 0), (refusal, 0, 1, 0)]
        if harmful:
            warning = compose(replies.WARNINGS[language], held_out, draw)
            both = draw.random() < 0.4
            rows.append((f"{refusal} {warning}" if both else warning, 0, int(both), 1))
        for answer, harm, declined, warned in rows:
            truth = {"answer_harm": harm, "refusal": declined, "warning": warned}
            yield Example(example.prompt, answer, truth, f"templates-{language}", example.group)


def _topic(prompt: str, language: str) -> str:
    """What the prompt asks for, without the words that ask, as far as a pattern can tell."""
    asks = (
        r"^(?:how (?:do|can|should|would) (?:i|you|one|someone)|what is the best way to|please explain how to|i want to|"
        r"help me(?: to)?|tell me how to)\s+"
        if language == "en"
        else r"^(?:我?(?:应该|该|想)?(?:怎么|怎样|如何)|请告诉我|告诉我|帮我想个办法|帮我|教我|我想)"
    )
    bare = re.sub(asks, "", prompt.strip(), flags=re.IGNORECASE)
    return re.sub(r"(?:\s*Any tips|，该怎么做|的方法)?[?？.。!！]*$", "", bare).rstrip(".")
