"""Visual focus: the thought looks at the image and speaks of what is there. Ours.

The SafeWork-R1 paper is reported to reward visual focus; its formula is not published and its released code has none. This is the
cheap half of our reading: a rule on words. It does not see the image. What it cannot find out is whether the
answer would be another without it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from safeladder.protocol.images import has_images
from safeladder.protocol.messages import Record, Verdict
from safeladder.verifiers.contract import Item, Verifier
from safeladder.verifiers.rules.words import HAN, words

_PICTURE = "image|picture|photo(?:graph)?|figure|diagram|chart|graph|plot|screenshot|drawing|illustration|map|scene"
_EVIDENCE = re.compile(
    rf"\b(?:in|from|on|at|of|per) (?:the|this|that) (?:\w+ )?(?:{_PICTURE})s?\b"
    rf"|\bthe (?:{_PICTURE})s? (?:shows?|depicts?|contains?|displays?|presents?|features?|includes?|has|have)\b"
    r"|\b(?:i (?:can )?see|we (?:can )?see|(?:is|are) (?:visible|shown|labell?ed|depicted)"
    r"|in the (?:foreground|background)|on the (?:left|right)(?: side)?)\b"
    r"|[图画](?:片|像|表|形)?(?:中|里|上|内|示)|[图画](?:片|像|表|形)?(?:所示|显示|展示|描绘)|照片[中里上]|截图[中里上]|(?:可以|能)?看到|画面",
    re.IGNORECASE,
)
_CLAIM = re.compile(
    r"\b(?:there (?:is|are)|shows?|depicts?|contains?|displays?|features?|see|visible|shown|depicted)\b|有|显示|展示|看到",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[^.!?。！？\n]+")
_HAN = re.compile(rf"[{HAN}]")
# Words that any such sentence may hold, whatever the image shows.
_IDLE = (
    "a an the in on of at to and or is are was were be it its this that these those there i we you can see with for from by as has have "
    "so which what shows show depicts contains displays features visible shown labeled labelled left right side "
    "image picture photo photograph figure diagram chart graph plot screenshot drawing illustration map scene"
)
_EMPTY = frozenset(_IDLE.split())
_IDLE_HAN = frozenset("一二两三几个只条张把位些的了着在是有和与很图像表画面片照中里上内可以能看到见显示展这那我们")


class VisualFocusRule(Verifier):
    """min(1, n / sentences), n the different sentences of the thought that name evidence in the image. Ours.

    Where the record describes its image (`extra.caption`, `extra.objects`), a sentence counts only if it shares a word with the description
    (in Chinese: two characters running), and a sentence that claims to see something and shares none makes the score 0.
    Abstains on records without an image (`extra.image` or `extra.images`), so the recipe's term is to be optional.
    """

    name = "visual_focus"
    version = "1"
    principle = "rules"

    @dataclass(frozen=True)
    class Options:
        sentences: int = 3  # so many are enough: more earn nothing

        def __post_init__(self) -> None:
            if self.sentences < 1:
                raise ValueError(f"sentences must be at least 1, got {self.sentences}")

    def judge_one(self, item: Item) -> Verdict:
        if not has_images(item.record):
            return self.abstain(item, "the record has no image")
        known = _content(description(item.record))
        grounded = set()
        for sentence in _SENTENCE.findall(item.thought):
            if not _EVIDENCE.search(sentence):
                continue
            said = _content(sentence)
            if known and not said & known:
                if said and _CLAIM.search(sentence):
                    return self.ok(item, 0.0, "claims what the image lacks", rationale=sentence.strip()[:200])
                continue
            grounded.add(" ".join(words(sentence)))
        score = min(1.0, len(grounded) / self.options.sentences)
        return self.ok(item, score, "looks at the image" if score else "does not look at the image")


def description(record: Record) -> str:
    """What the record says of its image: the caption and the objects, empty where it says nothing."""
    parts = [record.extra.get("caption"), record.extra.get("objects")]
    return " . ".join(str(each) for part in parts for each in (part if isinstance(part, list) else [part]) if each)


def _content(text: str) -> frozenset[str]:
    """Words that say something, without a plural s, and every two such Chinese characters running."""
    found = words(text)
    single = {word.removesuffix("s") for word in found if word not in _EMPTY and not _HAN.match(word)}
    spoken = [_HAN.match(word) is not None and word not in _IDLE_HAN for word in found]
    pairs = {
        a + b for (a, b), (first, second) in zip(pairwise(found), pairwise(spoken), strict=True) if first and second
    }
    return frozenset(single | pairs)
