"""Which language a text is in, as far as the instruction rule asks: by script, and among languages of one script by common words.

Made to tell apart the languages that IFEval asks for, on texts of some sentences. It is no general language
identifier: a text too short to hold a common word of any language counts as any language of its script.
"""

from __future__ import annotations

import re
from collections import Counter

from safeladder.verifiers.rules.words import HAN, without_notation

_RANGES = {
    "han": HAN,
    "kana": "\u3041-\u30ff",
    "hangul": "\uac00-\ud7a3",
    "cyrillic": "\u0400-\u04ff",
    "arabic": "\u0600-\u06ff",
    "hebrew": "\u0590-\u05ff",
    "greek": "\u0370-\u03ff",
    "devanagari": "\u0900-\u097f",
    "bengali": "\u0980-\u09ff",
    "gurmukhi": "\u0a00-\u0a7f",
    "gujarati": "\u0a80-\u0aff",
    "tamil": "\u0b80-\u0bff",
    "telugu": "\u0c00-\u0c7f",
    "kannada": "\u0c80-\u0cff",
    "malayalam": "\u0d00-\u0d7f",
    "thai": "\u0e00-\u0e7f",
    "latin": "a-zA-Z\u00c0-\u024f\u1e00-\u1eff",
}
# A unit is a word, or of a script that is written without spaces a character, of Thai about as many as make a word.
_SIZE = {"han": "", "kana": "", "thai": "{1,4}"}
_UNIT = re.compile("|".join(f"(?P<{s}>[{r}]{_SIZE.get(s, '+')})" for s, r in _RANGES.items()))

_SCRIPT = {
    "ja": "kana", "ko": "hangul", "ru": "cyrillic", "uk": "cyrillic", "bg": "cyrillic", "ar": "arabic", "fa": "arabic", "ur": "arabic",
    "he": "hebrew", "el": "greek", "hi": "devanagari", "mr": "devanagari", "ne": "devanagari", "bn": "bengali", "pa": "gurmukhi",
    "gu": "gujarati", "ta": "tamil", "te": "telugu", "kn": "kannada", "ml": "malayalam", "th": "thai", "zh": "han",
}  # fmt: skip

# The commonest words of languages that share a script, those left out that several of them share.
_COMMON = {
    "en": "the of and to is in that it was for with as are this be you not have from they which",
    "de": "der die das und ist nicht ein eine zu mit auf für den dem sich auch wird von sind wir",
    "fr": "le les des et est une dans pour que qui sur pas au avec ce sont nous vous du il",
    "es": "el los las y es una del por con que para como más su pero se al lo está son",
    "it": "il che di è una per non con del della gli sono anche più nel alla questo come ma si",
    "pt": "o os que é uma não para com do da em mais dos das como ao foi são você seu",
    "nl": "de het een van en is dat niet op zijn voor met ook maar aan wordt door naar hebben bij",
    "pl": "i w nie na się jest to z że do jak o ale przez są dla od po tym który",
    "vi": "là và của các có được cho không một trong những người này với để khi đã từ tôi bạn",
    "fi": "ja on ei se että hän oli mutta ovat joka kun myös tai niin kuin sen mukaan voi ole jos",
    "sw": "na ya wa kwa ni la katika za cha hii kuwa au lakini vya hiyo yake kama watu huo sana",
    "ru": "и в не на что с он как это по но из я то все она так его от для",
    "uk": "і в не на що з він як це по але із я та все вона так його від для є",
    "bg": "и в не на че с той като това по но от аз да се за са който има е",
    "ar": "في من على أن إلى هذا التي الذي عن مع كان لا ما هذه و هو هي كل بين قد",
    "fa": "و در به از که این را با است برای آن یک خود تا کرد بر هم نیز شده می",
    "ur": "کے میں کی ہے اور سے کا کو اس کہ نے پر ہیں ایک یہ بھی تھا نہیں جو لیے",
    "hi": "है में के की और का से को हैं पर यह एक कि नहीं इस भी था लिए हो जो",
    "mr": "आहे आणि या च्या ते मध्ये आहेत होते हा की व हे नाही तर एक त्या होती असे झाले साठी",
    "ne": "छ र को मा हो छन् यो गर्न पनि लागि भएको गरेको थियो का एक ले लाई हुन्छ तथा भने",
}
_WORDS = {language: frozenset(text.split()) for language, text in _COMMON.items()}
KNOWN = frozenset(_SCRIPT) | frozenset(_WORDS)


def known(language: str) -> bool:
    return _code(language) in KNOWN


def _code(language: str) -> str:
    """The language of an ISO 639-1 code with or without a region: zh of zh-cn."""
    return language.lower().replace("_", "-").partition("-")[0]


def is_in(text: str, language: str) -> bool:
    """Whether most of the text is in the language, an ISO 639-1 code of `KNOWN`, with or without a region.

    Code, formulas and addresses are of no language. False for a text without letters. Raises ValueError for a language that is not known.
    """
    code = _code(language)
    if code not in KNOWN:
        raise ValueError(f"the language {language!r} is not known; known are {', '.join(sorted(KNOWN))}")
    found = list(_UNIT.finditer(without_notation(text)))
    if not found:
        return False
    counts = Counter(unit.lastgroup for unit in found)
    script = _SCRIPT.get(code, "latin")
    if code in ("zh", "ja"):  # Japanese is written in Chinese characters too, but hardly a sentence without kana
        both = counts["han"] + counts["kana"]
        return both > len(found) / 2 and (counts["kana"] >= both / 10) == (code == "ja")
    if counts[script] <= len(found) / 2:
        return False
    rivals = [other for other in _WORDS if _SCRIPT.get(other, "latin") == script]
    said = Counter(unit[0].casefold() for unit in found if unit.lastgroup == script)
    hits = {other: sum(said[word] for word in _WORDS[other]) for other in rivals}
    return hits.get(code, 0) == max(hits.values(), default=0)
