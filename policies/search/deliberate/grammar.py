"""The written form of a deliberation: what a policy may write, and what the environment writes between its turns.

    turn    <think>...</think><confidence>0..10</confidence> and one of
            <search>query</search>   <read>document id</read>   <answer>...</answer>
    reply   one block of the environment's after each turn but the last:
            <results>[{"id", "title", "abstract"}, ...]</results>   <document>...</document>   <notice>...</notice>

Tags and confidence as in Deliberative Searcher (arXiv 2507.16727); the form of a reply is ours. A text is well formed when every turn is
think, confidence, action in this order and nothing else, the last action and no other is an answer, every document that is read stood
in an earlier list of results, and no reply but those the environment gives stands in it. A policy that writes a reply itself is found
out from the text alone: the environment's comes right after an action and is one block, so a forged one is a second, or stands elsewhere.

Space between blocks and around contents does not count. Reading never raises; it says what is malformed and where.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast, get_args

Action = Literal["search", "read", "answer"]
ReplyKind = Literal["results", "document", "notice"]

ACTIONS: Final[tuple[str, ...]] = get_args(Action)
REPLIES: Final[tuple[str, ...]] = get_args(ReplyKind)
TAGS: Final = ("think", "confidence", *ACTIONS, *REPLIES)
STOPS: Final = tuple(f"</{action}>" for action in ACTIONS)  # what ends a turn
CERTAIN: Final = 5  # zeta: a confidence above it counts as certain
MOST: Final = 10  # the highest confidence

_TAG: Final = re.compile(rf"<(/?)({'|'.join(TAGS)})>")
_CONFIDENCE: Final = re.compile(r"10|[0-9]")
_FITTING: Final = {"search": ("results", "notice"), "read": ("document", "notice")}


@dataclass(frozen=True)
class Reply:
    """What the environment wrote after a turn."""

    kind: ReplyKind
    text: str

    @property
    def ids(self) -> set[str]:
        """Documents that a list of results names; none in any other reply."""
        return set(listed(self.text)) if self.kind == "results" else set()


@dataclass(frozen=True)
class Turn:
    """One turn of the policy's, and the environment's reply to it. `argument`: the query, the document's id, or the answer."""

    think: str
    confidence: int
    action: Action
    argument: str
    reply: Reply | None = None


@dataclass(frozen=True)
class Transcript:
    """A text as read: its well-formed turns in order, and all that is wrong with it."""

    turns: tuple[Turn, ...]
    faults: tuple[str, ...] = ()

    @property
    def well_formed(self) -> bool:
        return not self.faults

    @property
    def answer(self) -> str | None:
        """The final answer; None where the last turn gives none."""
        return self.turns[-1].argument if self.turns and self.turns[-1].action == "answer" else None

    @property
    def confidence(self) -> int | None:
        """As stated with the last turn, 0 to 10."""
        return self.turns[-1].confidence if self.turns else None

    def count(self, action: Action) -> int:
        return sum(turn.action == action for turn in self.turns)


# ------------------------------------------------------------------------------------------------------- writing


def block(tag: str, text: str) -> str:
    return f"<{tag}>{text}</{tag}>"


def render(transcript: Transcript) -> str:
    """The text of well-formed turns; `parse` of it gives them back, their contents without the space around them."""
    lines = []
    for turn in transcript.turns:
        lines += [block("think", turn.think), block("confidence", str(turn.confidence))]
        lines.append(block(turn.action, turn.argument))
        if turn.reply is not None:
            lines.append(block(turn.reply.kind, turn.reply.text))
    return "\n".join(lines)


def listing(results: Sequence[tuple[str, str, str]]) -> str:
    """The contents of a list of results, (id, title, abstract) each, on one line. They must hold no tags."""
    rows = [{"id": id, "title": title, "abstract": abstract} for id, title, abstract in results]
    return json.dumps(rows, ensure_ascii=False)


def listed(text: str) -> list[str]:
    """The ids in the first line of a list of results; empty for what is none."""
    try:
        rows = json.loads(text.strip().partition("\n")[0])
    except (ValueError, RecursionError):
        return []
    rows = rows if isinstance(rows, list) else []
    return [row["id"] for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]


# ------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Block:
    tag: str
    text: str


def parse(text: str) -> Transcript:
    """Reads a whole trajectory, of which the environment's replies are a part."""
    blocks, faults = _blocks(text)
    turns: list[Turn] = []
    seen: set[str] = set()
    own: list[_Block] = []
    number = 1
    for part in [*blocks, None]:
        if part is not None and part.tag not in REPLIES:
            own.append(part)
            continue
        if part is None and not own and turns:
            break
        turn, problems = _turn(own)
        reply = None if part is None else Reply(cast(ReplyKind, part.tag), part.text)
        if turn is not None:
            problems += _misplaced(turn, reply, seen)
            turns.append(Turn(turn.think, turn.confidence, turn.action, turn.argument, reply))
        faults += [f"turn {number}: {problem}" for problem in problems]
        seen |= reply.ids if reply else set()
        own, number = [], number + 1
    if not turns or turns[-1].action != "answer":
        faults.append("no answer at the end")
    return Transcript(tuple(turns), tuple(faults))


def parse_turn(text: str) -> tuple[Turn | None, list[str]]:
    """Reads what a policy wrote in one turn: the turn as far as it can be told, and what is malformed."""
    blocks, faults = _blocks(text)
    faults += [f"<{part.tag}> is not the policy's to write" for part in blocks if part.tag in REPLIES]
    turn, problems = _turn([part for part in blocks if part.tag not in REPLIES])
    return turn, [*faults, *problems]


def _blocks(text: str) -> tuple[list[_Block], list[str]]:
    """Everything between an opening tag and the next closing one of its name, in order."""
    blocks: list[_Block] = []
    faults: list[str] = []
    opened: re.Match[str] | None = None
    end = 0
    for tag in _TAG.finditer(text):
        name, closes = tag[2], bool(tag[1])
        if opened is None:
            faults += _stray(text[end : tag.start()])
            end = tag.end()
            if closes:
                faults.append(f"</{name}> closes nothing")
            else:
                opened = tag
        elif closes and name == opened[2]:
            blocks.append(_Block(name, text[opened.end() : tag.start()].strip()))
            opened, end = None, tag.end()
        else:
            faults.append(f"{tag[0]} within <{opened[2]}>")
    if opened is not None:
        faults.append(f"<{opened[2]}> is not closed")
    else:
        faults += _stray(text[end:])
    return blocks, faults


def _stray(between: str) -> list[str]:
    return ["text outside of all tags"] if between.strip() else []


def _turn(blocks: Sequence[_Block]) -> tuple[Turn | None, list[str]]:
    """The turn as far as it can be told: one with an action and a stated confidence."""
    faults = list(_disorder([part.tag for part in blocks]))
    found = {part.tag: part.text for part in blocks}  # of several the last, which is the one that was acted on
    faults += [f"<{tag}> is empty" for tag, text in found.items() if not text]
    action = next((part for part in reversed(blocks) if part.tag in ACTIONS), None)
    stated = found.get("confidence", "")
    if stated and not _CONFIDENCE.fullmatch(stated):
        faults.append(f"the confidence is {stated[:20]!r}, not an integer from 0 to {MOST}")
        stated = ""
    if action is None or not stated or not action.text:
        return None, faults
    return Turn(found.get("think", ""), int(stated), cast(Action, action.tag), action.text), faults


def _disorder(tags: Sequence[str]) -> Iterator[str]:
    for tag in ("think", "confidence"):
        if tags.count(tag) != 1:
            yield f"{tags.count(tag)} <{tag}> in place of one"
    actions = [tag for tag in tags if tag in ACTIONS]
    if len(actions) != 1:
        yield f"{len(actions)} actions in place of one of {', '.join(ACTIONS)}"
    elif tags[-1] != actions[0]:
        yield f"<{actions[0]}> is not the end of the turn"
    if "think" in tags and "confidence" in tags and tags.index("think") > tags.index("confidence"):
        yield "the confidence stands before the thought"


def _misplaced(turn: Turn, reply: Reply | None, seen: set[str]) -> list[str]:
    """What is wrong with a turn where it stands: an answer is the last, and a document is read that was found."""
    if turn.action == "answer":
        return ["something follows the answer"] if reply is not None else []
    faults = []
    if reply is None:
        faults.append(f"<{turn.action}> has no reply")
    elif reply.kind not in _FITTING[turn.action]:
        faults.append(f"<{reply.kind}> is no reply to <{turn.action}>")
    if turn.action == "read" and turn.argument not in seen:
        faults.append(f"document {turn.argument[:40]!r} stood in no results before")
    return faults
