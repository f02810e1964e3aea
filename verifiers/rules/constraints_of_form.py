"""Instruction constraints on the form of a text: paragraphs, lists, sections, titles, how it begins and ends.

Each kind is a function (text, arguments) -> whether the text keeps it, named as in IFEval (arXiv 2311.07911).
"""

from __future__ import annotations

import json
import re
from typing import Final

from safeladder.verifiers.rules.constraints_of_words import Check, Count, Positive, Word, Words
from safeladder.verifiers.rules.words import HAN

_BULLET = re.compile(r"^\s*(?:\*(?!\*)\s*\S|-(?!-)\s*\S|[•·●]\s*\S)", re.MULTILINE)
_FENCE = re.compile(r"\A```(?:json)?\s*\n?(.*?)\n?\s*```\Z", re.DOTALL | re.IGNORECASE)
_HIGHLIGHT = re.compile(r"\*\*([^\n*]+)\*\*|\*([^\n*]+)\*")
_STARS = re.compile(r"\s?\*\*\*\s?")
_ANSWERS = ["My answer is yes.", "My answer is no.", "My answer is maybe."]
_QUOTES = {'"': '"', "“": "”", "「": "」"}


def _paragraphs(text: str, *, num_paragraphs: Positive) -> bool:
    """Divided by `***`, as IFEval's instruction asks; none may be empty, but for a divider at either end."""
    return _parts(text, _STARS) == num_paragraphs


def _parts(text: str, divider: re.Pattern[str]) -> int | None:
    """How many parts; None where one between two others is empty."""
    parts = [part.strip() for part in divider.split(text)]
    if not all(parts[1:-1]):
        return None
    return sum(1 for part in parts if part)


def _first_word(text: str, *, num_paragraphs: Positive, nth_paragraph: Positive, first_word: Word) -> bool:
    """Paragraphs are divided by blank lines; a Chinese paragraph begins with the characters asked for."""
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    if len(paragraphs) != num_paragraphs or nth_paragraph > num_paragraphs:
        return False
    begins = paragraphs[nth_paragraph - 1].lstrip("\"'“‘「*_ ").casefold()
    wanted = first_word.casefold()
    if re.search(rf"[{HAN}]\Z", wanted):
        return begins.startswith(wanted)
    return re.match(re.escape(wanted) + r"(?![^\W_])", begins) is not None


def _placeholders(text: str, *, num_placeholders: Count) -> bool:
    return len(re.findall(r"\[[^\[\]\n]+\]|【[^【】\n]+】", text)) >= num_placeholders


def _postscript(text: str, *, postscript_marker: Word) -> bool:
    """The marker begins a line, or follows a sentence; P.S. and P.P.S may be written with spaces."""
    letters = [re.escape(letter) + r"\s?" for letter in re.split(r"(?<=\.)", postscript_marker) if letter]
    marker = "".join(letters) if "." in postscript_marker else re.escape(postscript_marker)
    return re.search(rf"(?:^|(?<=[\s.!?。！？])){marker}\s*\S", text, re.IGNORECASE | re.MULTILINE) is not None


def _bullets(text: str, *, num_bullets: Count) -> bool:
    return len(_BULLET.findall(text)) == num_bullets


def _constrained(text: str, *, options: Words = _ANSWERS) -> bool:
    """`options`, IFEval's three by default, is ours: constrained answers in Chinese need others."""
    return any(option in text for option in options)


def _highlights(text: str, *, num_highlights: Count) -> bool:
    return sum(1 for pair in _HIGHLIGHT.findall(text) if "".join(pair).strip()) >= num_highlights


def _sections(text: str, *, section_spliter: Word, num_sections: Count) -> bool:
    """A section begins with the divider and a number: "Section 1", or in Chinese "第一节" and "节1" for the divider "节"."""
    divider, number = re.escape(section_spliter), r"[\d一二三四五六七八九十]+"
    begins = rf"{divider}\s*{number}"
    if re.search(rf"[{HAN}]\Z", section_spliter):
        begins = rf"第\s*{number}\s*{divider}|{begins}"
    return len(re.findall(begins, text)) >= num_sections


def _json(text: str) -> bool:
    """The whole text is JSON, in a code fence or without."""
    bare = text.strip()
    fenced = _FENCE.match(bare)
    try:
        json.loads(fenced[1] if fenced else bare)
    except (ValueError, RecursionError):  # nested a thousand deep: no reader of JSON takes it
        return False
    return True


def _title(text: str) -> bool:
    return any(found.strip("<> ") for found in re.findall(r"<<[^\n]+?>>", text))


def _two_responses(text: str) -> bool:
    """Two different ones, divided by six asterisks."""
    parts = [part.strip() for part in text.split("******")]
    found = [part for part in parts if part]
    return all(parts[1:-1]) and len(found) == 2 and found[0] != found[1]


def _repeat_prompt(text: str, *, prompt_to_repeat: Word) -> bool:
    return text.strip().casefold().startswith(prompt_to_repeat.strip().casefold())


def _end_phrase(text: str, *, end_phrase: Word) -> bool:
    return text.strip().strip('"“”').casefold().endswith(end_phrase.strip().casefold())


def _quotation(text: str) -> bool:
    bare = text.strip()
    return len(bare) > 1 and _QUOTES.get(bare[0]) == bare[-1]


KINDS: Final[dict[str, Check]] = {
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": _constrained,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeat_prompt,
    "startend:end_checker": _end_phrase,
    "startend:quotation": _quotation,
}
