"""Text from outside is evidence, never an instruction and never part of the grammar: ours throughout, the reference names only the steps.

    neutral     no control characters, and no < or >: it can neither open or close a tag nor spell a chat template's special token
    stripped    without the sentences that address the model: commands, questions, talk of its answer, its rules or its role
    distinct    without what has been shown already
    bounded     in characters

What is stripped is told by patterns, English and Chinese. That is a filter and no proof: an instruction in other words passes, and reaches
the policy as text between tags that it cannot leave. Nothing retrieved is ever executed, fetched or followed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from safeladder.policies.search.retrieval.documents import Document, Hit
from safeladder.policies.search.retrieval.terms import terms

_SENTENCE: Final = re.compile(r"[^.!?。！？\n]*(?:[.!?](?!\s|$)[^.!?。！？\n]*)*[.!?。！？\n]*[\"'”’」』)）]*\s*")
_OPENING: Final = r"^[\s\"'“‘「『(（*#>\-•\d.:：]*"

_REPLY: Final = r"(answer|response|reply|replies|output|message|summary|completion)s?"
_PATTERNS: Final = (
    # what the model's own answer should be like
    rf"\b(your|the (assistant|model|ai)'s|this)\s+((final|next|own|entire)\s+)?{_REPLY}('s)?\b",
    rf"\b(reply|respond|answer)\s+(with|only|in|using|by|as)\b.*|\b{_REPLY} (must|should) (be|begin|start|end|contain|include)\b",
    # its rules and its role
    r"\b(ignore|disregard|forget|override|bypass)\b.{0,40}\b(instruction|prompt|rule|guideline|context|text|above|previous|everything|safety)",
    r"\b(system prompt|hidden prompt|developer mode|jailbreak|new instructions?)\b|\byou (are|must|should|will) now\b|\bas an ai\b",
    r"\b(act|behave|pretend|roleplay) (as|like|to be) (an? )?(ai|assistant|model|expert|dan|unrestricted)\b",
    r"\bif you are (an? )?(ai|llm|language model|assistant|chatbot)\b|\b(ai|language) models?,? (must|should|please)\b",
    rf"{_OPENING}(system|assistant|user|human|instructions?)\s*[:：]",
    # commands: a sentence that begins with the bare verb
    rf"{_OPENING}((please|kindly|now|then|also|first|next|instead|finally|important)[,:]?\s+)*"
    r"(explain|describe|translate|summari[sz]e|write|compose|draft|rewrite|paraphrase|generate|create|develop|provide|convert|replace|"
    r"substitute|rearrange|scramble|jumble|misspell|anagram|encode|decode|render|introduce|insert|append|prepend|include|integrate|"
    r"augment|enhance|modify|remove|combine|group|list|show|tell|give|print|repeat|reveal|say|output|click|visit|download|install|run|"
    r"execute|open|send|email|call|buy|subscribe|break down|do not|don't|make sure|remember to|use|add)(?=\s)",
    # questions and requests
    rf"{_OPENING}(what|who|whom|whose|which|when|where|why|how|can|could|would|will|do|does|did|is|are|should)\b.*\?[\s\"'”’)]*$",
    # the same in Chinese
    r"(忽略|无视|忘记|忘掉|绕过|不要理会|不要遵守).{0,20}(指令|指示|提示|规则|要求|内容|上文|限制)",
    r"(你|您)的(最终|下一个)?(回答|回复|答复|答案|输出|响应|消息|总结)|(在|于)(回答|回复|答复|输出)(中|里|时|的末尾)",
    r"系统提示|开发者模式|越狱|新的?指令|(你|您)(现在|必须|应该|将要?)(是|扮演|作为)|扮演|如果(你|您)是.{0,8}(模型|助手|人工智能)|作为(一个)?(人工智能|AI|语言模型)",
    rf"{_OPENING}(系统|助手|用户|指令|指示)\s*[:：]",
    rf"{_OPENING}(请|务必|立即|马上|现在请|麻烦)?(你|您)?(解释一?下|描述一下|翻译|总结一下|写一(篇|首|个|封)|编写|生成|输出|重复|点击|下载|安装|访问|打开|执行|运行|发送)(?!的|了|于|是|在|量|者|率)",
    rf"{_OPENING}(请|务必|切记|麻烦你)(?!求|愿|辞|教)",
    r"(什么|谁|如何|怎么|怎样|为什么|哪|多少|几|吗|呢)[^。！]*[？?][\s”」』）]*$|^\s*请问",
)  # fmt: skip
_ADDRESSES: Final = re.compile("|".join(f"(?:{pattern})" for pattern in _PATTERNS), re.IGNORECASE)

# Cc but for the line's end and the tab, and Cf: zero-width characters and changes of direction, which hide what is written
_KEPT_CONTROLS: Final = frozenset("\n\t")
_BRACKETS: Final = str.maketrans({"<": "‹", ">": "›"})
_BLANKS: Final = re.compile(r"[^\S\n]+")
_LINES: Final = re.compile(r"\s*\n\s*")


@dataclass(frozen=True, slots=True)
class Cleaned:
    """`removed`: sentences that were stripped."""

    text: str
    removed: int = 0


def neutral(text: str) -> str:
    """Without control characters and angle brackets, which become ‹ and ›. What it returns it leaves as it is."""
    shown = "".join(c for c in text if c in _KEPT_CONTROLS or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co"))
    return shown.translate(_BRACKETS)


def addresses_the_model(sentence: str) -> bool:
    """Whether a pattern takes this sentence for an instruction or a question to its reader."""
    return _ADDRESSES.search(unicodedata.normalize("NFKC", sentence)) is not None


def sentences(text: str) -> list[str]:
    """The sentences of a text; together they are the text. A point within a word or a number ends none."""
    return [found for found in _SENTENCE.findall(text) if found]


def clean(text: str, characters: int) -> Cleaned:
    """Neutral, stripped and at most `characters` long: cut at a word's end where there is one, with … as the last."""
    kept, removed = [], 0
    for sentence in sentences(neutral(text)):
        if addresses_the_model(sentence):
            removed += 1
        else:
            kept.append(sentence)
    return Cleaned(bounded(_LINES.sub("\n", _BLANKS.sub(" ", "".join(kept))).strip(), characters), removed)


def bounded(text: str, characters: int) -> str:
    if len(text) <= characters:
        return text
    cut = text[: max(0, characters - 1)]
    space = cut.rfind(" ")
    return (cut[:space] if space > characters // 2 else cut).rstrip() + "…"


def abstract(text: str, query: str, characters: int) -> str:
    """The part of a clean text that says most about the query: from the sentence on that shares most terms with it."""
    parts = sentences(text)
    asked = set(terms(query))
    shared = [len(asked & set(terms(part))) for part in parts]
    start = shared.index(max(shared)) if parts else 0
    return bounded("".join(parts[start:]).strip().replace("\n", " "), characters)


def distinct(hits: Iterable[Hit], shown: Sequence[Document] = ()) -> list[Hit]:
    """Without hits whose id or whose words stand in an earlier one. `shown`: documents of the same id are not counted as repeated."""
    words = {_words(document): document.id for document in shown}
    ids: set[str] = set()
    kept = []
    for hit in hits:
        known = words.setdefault(_words(hit.document), hit.document.id)
        if hit.document.id not in ids and known == hit.document.id:
            kept.append(hit)
        ids.add(hit.document.id)
    return kept


def _words(document: Document) -> tuple[str, ...]:
    return tuple(terms(document.text))
