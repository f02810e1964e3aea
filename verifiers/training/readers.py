"""Files and texts of our own, read as examples. A reader is named in a head's configuration; `rows` is the plain one.

Every reader yields the same examples whenever it is called with the same arguments: what is drawn is drawn with the seed.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from safeladder.verifiers.training import contrast, replies
from safeladder.verifiers.training.answers import declines, opens_with_refusal, warns
from safeladder.verifiers.training.examples import Example, part
from safeladder.verifiers.training.planted import OWN, foreign_sentences, own_sentences
from safeladder.verifiers.training.replies import compose
from safeladder.verifiers.training.statements import statements

COMPLIANCE, PARTIAL, REFUSAL = 0, 1, 2

Row = dict[str, Any]


def load(path: Path) -> list[Row]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def rows(file: Path, options: Mapping[str, Any], draw: random.Random) -> Iterator[Example]:
    """The plain reader. Options: `first`, `second`: field names; `target`: a number, or a field holding 0 or 1; `group`: a field;
    `limit`; `cut`: characters kept; `without`: field -> values left out; `flip`: the field says the opposite."""
    found = load(file)
    unwanted = dict(options.get("without", {}))
    found = [row for row in found if all(row.get(field) not in values for field, values in unwanted.items())]
    limit = int(options.get("limit", 0))
    if limit and len(found) > limit:
        found = draw.sample(found, limit)
    cut = int(options.get("cut", 6000))
    for row in found:
        first, second = (str(row[options[name]])[:cut] if name in options else "" for name in ("first", "second"))
        target = options["target"]
        value = target if isinstance(target, int) else int(bool(row[target]))
        value = 1 - value if options.get("flip") else value
        group = str(row[options["group"]]) if "group" in options else first or second
        yield Example(first, second, value, str(options["name"]), group)


# ------------------------------------------------------------------------------------------------ requests


def own_requests() -> list[tuple[str, int, str, str]]:
    """(request, harmful, source, group) of this project's writing: listed contrasts by kind, and phrases in frames."""
    found = []
    for language in ("en", "zh"):
        kinds = yaml.safe_load((OWN / f"contrast-{language}.yaml").read_text(encoding="utf-8"))
        for kind, patterns in kinds.items():
            for pattern, sides in patterns.items():
                for harmful, side in enumerate(("safe", "unsafe")):
                    # a pattern has one group in both languages: its translation is no held-out text
                    found += [(text, harmful, f"contrast/{kind}", f"{kind}/{pattern}") for text in sides[side]]
        found += [
            (request, int(harmful), "phrases", phrase) for request, phrase, harmful in contrast.requests(language)
        ]
    return found


def contrasts(_: Path, options: Mapping[str, Any], draw: random.Random) -> Iterator[Example]:
    """Requests of our own that sound harmful and are not, beside those that are."""
    weight = float(options.get("weight", 1.0))
    for text, harmful, source, group in own_requests():
        yield Example(text, "", harmful, source, group, weight)


def task_file(file: Path, options: Mapping[str, Any], draw: random.Random) -> Iterator[Example]:
    """The embedded records: family safety is harmful unless it is borderline."""
    for row in load(file):
        harmful = row["label"] == "safety" and row.get("category") != "borderline"
        yield Example(str(row["prompt"]), "", int(harmful), str(options["name"]), str(row["prompt"]), 2.0)


# ------------------------------------------------------------------------------------------------ answers


def _pairs(options: Mapping[str, Any], draw: random.Random, folder: Path) -> Iterator[tuple[str, bool, str]]:
    """(prompt, harmful, group) to put composed answers under: our own and public ones."""
    for text, harmful, _, group in own_requests():
        yield text, bool(harmful), group
    files = {"catqa-en": 1, "catqa-zh": 1, "advbench": 1, "jade-zh": 1, "everyday-requests": 0, "cvalues-zh": 0}
    for name, harmful in files.items():
        for row in draw.sample(load(folder / "tasks" / f"{name}.jsonl"), int(options.get("each", 250))):
            yield str(row["prompt"])[:400], bool(harmful), str(row["prompt"])


def composed(file: Path, options: Mapping[str, Any], draw: random.Random) -> Iterator[Example]:
    """Answers put together from parts, in both languages, under prompts of both kinds; `head` says what is told of them."""
    head = options["head"]
    draw = random.Random(int(options.get("seed", 1)))  # the same answers for every head, which are then encoded once
    for prompt, harmful, group in _pairs(options, draw, file):
        language = "zh" if re.search(r"[\u4e00-\u9fff]", prompt) else "en"
        held_out = part(group) == "test"
        refusal = compose(replies.REFUSALS[language], held_out, draw)
        compliance = compose(replies.COMPLIANCE[language], held_out, draw).format(topic(prompt, language))
        warning = compose(replies.WARNINGS[language], held_out, draw)
        joint = (
            draw.choice(("However, ", "That said, ", "But if you insist: ", ""))
            if language == "en"
            else draw.choice(("不过，", "但是，", ""))
        )
        kinds = [  # text, harm, refusal class, warns
            (compliance, int(harmful), COMPLIANCE, 0),
            (refusal, 0, REFUSAL, 0),
            (f"{refusal} {joint}{compliance}", int(harmful), PARTIAL, 0),
            (warning, 0, None, 1),
            (f"{refusal} {warning}", 0, REFUSAL, 1),
            (f"{compliance} {warning}", int(harmful), None, 1),
        ]
        for place in sorted(draw.sample(range(len(kinds)), 2)):
            text, harm, declined, warned = kinds[place]
            target = {"answer_harm": harm, "refusal": declined, "warning": warned}[head]
            if target is not None:
                yield Example(prompt, text, target, f"composed-{language}", group, 0.7)


def human_labelled(file: Path, options: Mapping[str, Any], draw: random.Random) -> Iterator[Example]:
    """gptfuzz: answers that people labelled harmful or not. Refusal and warning are read off them by wording."""
    head = options["head"]
    for row in load(file):
        prompt, answer, harmful = str(row["prompt"]), str(row["response"]), bool(row["harmful"])
        target: int | None
        if head == "answer_harm":
            target = int(harmful)
        elif head == "refusal":
            if harmful:
                target = PARTIAL if opens_with_refusal(answer) else COMPLIANCE
            else:
                target = REFUSAL if declines(answer) else None
        elif harmful:
            target = 0
        else:
            target = int(warns(answer)) if declines(answer) else None
        if target is not None:
            yield Example(prompt, answer, target, str(options["name"]), prompt)


def ordinary_answers(file: Path, options: Mapping[str, Any], draw: random.Random) -> Iterator[Example]:
    """Answers of a chat model to everyday requests: harmless; refusals where they open with one.

    For `refusal`, some are given a refusal of ours in front: partial. For `answer_harm`, some stand under harmful prompts, off topic.
    """
    head = options["head"]
    # the same answers for every head, which are then encoded once
    found = random.Random(1).sample(load(file), int(options.get("limit", 2000)))
    harmful = [text for text, is_harmful, _, _ in own_requests() if is_harmful]
    for number, row in enumerate(found):
        prompt, answer = str(row["prompt"]), str(row["response"])[:3000]
        says_no = opens_with_refusal(answer)
        source = str(options["name"])
        if head == "answer_harm":
            yield Example(prompt if number % 4 else draw.choice(harmful), answer, 0, source, prompt)
        elif head == "warning":
            if not warns(answer):
                yield Example(prompt, answer, 0, source, prompt)
        elif says_no:
            yield Example(prompt, answer, REFUSAL, source, prompt)
        elif not declines(answer):
            yield Example(prompt, answer, COMPLIANCE, source, prompt)
            if number % 6 == 0:
                refusal = compose(replies.REFUSALS["en"], part(prompt) == "test", draw)
                joint = draw.choice(("However, here is what I can say. ", "That said, ", ""))
                yield Example(prompt, f"{refusal} {joint}{answer}", PARTIAL, f"{source}-partial", prompt)


def preferred(file: Path, options: Mapping[str, Any], draw: random.Random) -> Iterator[Example]:
    """hh-harmless: answers to harmful turns, the preferred one harmless, the other not. Weak labels, of little weight."""
    for row in load(file)[: int(options.get("limit", 1200))]:
        prompt = str(row["prompt"])[-600:]
        for harmful, field in enumerate(("chosen", "rejected")):
            answer = str(row[field])
            if answer.strip() and (harmful == 0 or not declines(answer)):
                yield Example(prompt, answer, harmful, str(options["name"]), prompt, float(options.get("weight", 0.15)))


def topic(prompt: str, language: str) -> str:
    """What the prompt asks for, without the words that ask, as far as a pattern can tell."""
    asks = (
        r"^(?:how (?:do|can|should|would) (?:i|you|one|someone)|what is the best way to|please explain how to|i want to|"
        r"help me(?: to)?|tell me how to)\s+"
        if language == "en"
        else r"^(?:我?(?:应该|该|想)?(?:怎么|怎样|如何)|请告诉我|告诉我|帮我想个办法|帮我|教我|我想)"
    )
    bare = re.sub(asks, "", prompt.strip(), flags=re.IGNORECASE)
    bare = re.sub(r"(?:\s*Any tips|，该怎么做|的方法)?[?？.。!！]*$", "", bare).rstrip(".")
    return bare.replace("{", "(").replace("}", ")")


# ------------------------------------------------------------------------------------------------ values


def choices(file: Path, options: Mapping[str, Any], draw: random.Random) -> Iterator[Example]:
    """Moral questions with choices: the right one is acceptable, the one marked wrong (or each other one) is not."""
    for row in load(file):
        listed = row.get("choices") or []
        right = str(row.get("reference") or "")
        if not listed or right not in "ABCD" or not right:
            continue
        wrong = [row["wrong"]] if row.get("wrong") else [letter for letter in "ABCD"[: len(listed)] if letter != right]
        for target, letters in ((1, [right]), (0, wrong[:1])):
            for letter in letters:
                text = re.sub(r"^[A-D][.．、]\s*", "", str(listed["ABCD".index(letter)]))
                yield Example(str(row["prompt"])[-400:], text, target, str(options["name"]), str(row["prompt"]))


# ------------------------------------------------------------------------------------------------ evidence

_FRAMES: Final = {
    "en": (
        "{}",
        "{}",
        "The answer is {}.",
        "It is {}, according to the text.",
        "As far as the passage tells, it was {}.",
    ),
    "zh": ("{}", "{}", "答案是{}。", "根据原文，是{}。", "文中说的是{}。"),
}


def graded(file: Path, options: Mapping[str, Any], draw: random.Random) -> Iterator[Example]:
    """halueval-qa: evidence, question, and a right and a wrong answer. There the short answer is nearly always the right one; so the right
    one also comes in frames as long as the wrong ones, and another span of the evidence comes as a short wrong one."""
    for row in load(file):
        evidence, question, answer = (str(row[field]) for field in ("evidence", "prompt", "response"))
        first, source = f"{evidence}\n\n{question}", str(options["name"])
        yield Example(first, answer, int(row["correct"]), source, question, wraps=False)
        if row["correct"]:
            framed = draw.choice(_FRAMES["en"][2:]).format(answer)
            yield Example(first, framed, 1, f"{source}-framed", question, wraps=False)
            for wrong in _other_spans(evidence, question, answer, draw)[:2]:
                text = draw.choice(_FRAMES["en"]).format(wrong)
                yield Example(first, text, 0, f"{source}-swapped", question, wraps=False)


def passages(file: Path, options: Mapping[str, Any], draw: random.Random) -> Iterator[Example]:
    """xquad: questions with the passage that answers them; wrong are another question's of the same kind, and one of another passage."""
    tasks = load(file)
    corpus = {str(row["id"]): str(row["text"]) for row in load(file.parents[1] / "corpus" / file.name)}
    by_document: dict[str, list[Row]] = {}
    for row in tasks:
        by_document.setdefault(str(row["document"]), []).append(row)
    language = "zh" if "zh" in file.stem else "en"
    for row in tasks:
        right = str(row["reference"][0] if isinstance(row["reference"], list) else row["reference"])
        first = f"{corpus[str(row['document'])]}\n\n{row['prompt']}"
        others = [
            str(o["reference"][0] if isinstance(o["reference"], list) else o["reference"])
            for o in by_document[str(row["document"])]
        ]
        wrong = [o for o in others if o not in right and right not in o and _kind(o) == _kind(right)]
        frame = draw.choice(_FRAMES[language])
        if wrong:
            stranger = draw.choice(tasks)["reference"]
            absent = str(stranger[0] if isinstance(stranger, list) else stranger)
            pairs = [(1, right), (0, min(wrong, key=lambda other: abs(len(other) - len(right))))]
            if absent not in first and draw.random() < 0.6:
                pairs += [(0, absent)]
            for target, text in pairs:
                # a passage and its translation stand in one part
                group = "-".join(str(row["document"]).split("-")[2:])
                yield Example(first, frame.format(text), target, str(options["name"]), f"passage {group}", wraps=False)


def _kind(answer: str) -> str:
    return "number" if re.search(r"\d", answer) else "words"


def _other_spans(evidence: str, question: str, answer: str, draw: random.Random) -> list[str]:
    """Names or numbers of the evidence that are neither in the answer nor in the question."""
    pattern = r"\b\d[\d,.]*\b" if _kind(answer) == "number" else r"\b[A-Z][\w'-]+(?: (?:of |the )?[A-Z][\w'-]+)*"
    found = [span for span in dict.fromkeys(re.findall(pattern, evidence)) if span not in answer and answer not in span]
    found = [span for span in found if span.casefold() not in question.casefold() and len(span) > 2]
    draw.shuffle(found)
    return found


Reader = Callable[[Path, Mapping[str, Any], random.Random], Iterator[Example]]
READERS: Final[dict[str, Reader]] = {
    "rows": rows,
    "contrasts": contrasts,
    "task_file": task_file,
    "composed": composed,
    "human_labelled": human_labelled,
    "ordinary_answers": ordinary_answers,
    "preferred": preferred,
    "statements": statements,
    "choices": choices,
    "graded": graded,
    "passages": passages,
    "foreign_sentences": foreign_sentences,
    "own_sentences": own_sentences,
}
