"""What a text is searched by: stemmed English words without function words, and pairs of neighbouring Chinese characters.

Chosen by R@5 on XQuAD (tests/benchmarks/retrieval.py): stems by Snowball find more than words as they stand, and pairs of characters as
much as the words of a segmenter, which would need a dictionary.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

import Stemmer

_HAN: Final = "㐀-䶿一-鿿豈-﫿"
_WORD: Final = re.compile(rf"[{_HAN}]+|(?:(?![{_HAN}_])\w)+")
_FIRST_HAN: Final = re.compile(rf"[{_HAN}]")
_FUNCTION_WORDS: Final = """
    a an the and or of in on at to for by with from as into about is are was were be been it its this that these those he she they
    his her their what which who whom whose when where how why did do does has have had not no but
"""
_PASSED_OVER: Final = frozenset(_FUNCTION_WORDS.split())
_STEMMER: Final = Stemmer.Stemmer("english")


def terms(text: str) -> list[str]:
    """In the order of the text. A single Chinese character between other text is a term of its own."""
    found: list[str] = []
    for word in _WORD.findall(unicodedata.normalize("NFKC", text).casefold()):
        if not _FIRST_HAN.match(word):
            if word not in _PASSED_OVER:
                found.append(_STEMMER.stemWord(word))
        elif len(word) == 1:
            found.append(word)
        else:
            found += [word[at : at + 2] for at in range(len(word) - 1)]
    return found
