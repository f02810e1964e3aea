"""What counts as a word: an English word, a number, or one Chinese character.

Chinese is written without spaces and a character carries about as much as an English word, so that the two can be counted together.
"""

from __future__ import annotations

import re

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{HAN}]|\d+(?:\.\d+)+|[^\W_{HAN}]+(?:['’][^\W_{HAN}]+)*")
_HAN = re.compile(rf"[{HAN}]")

# Notation is of no language: fenced and inline code, formulas, LaTeX commands, addresses, tags.
_NOTATION = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$[^$\n]*\$|\\\[.*?\\\]|\\\(.*?\\\)|\\[a-zA-Z]+|https?://\S+|</?\w+>", re.DOTALL
)


def words(text: str) -> list[str]:
    """English words and numbers in lower case, and Chinese characters, in the order of the text."""
    return _WORD.findall(text.lower())


def without_notation(text: str) -> str:
    """The text with code, formulas, addresses and tags taken out."""
    return _NOTATION.sub(" ", text)


def chinese_share(text: str) -> float | None:
    """Chinese characters / (Chinese characters + words of letters), in [0, 1]; None where there are neither."""
    found = [word for word in words(without_notation(text)) if not word[0].isdigit()]
    if not found:
        return None
    return sum(1 for word in found if _HAN.match(word)) / len(found)
