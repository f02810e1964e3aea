"""Visual focus (ours): it pays to look at the image, not to say so again and again or to see what is not there."""

from __future__ import annotations

from typing import Any

import pytest

from safeladder.protocol.messages import Record, Verdict
from safeladder.verifiers.contract import Item, run
from safeladder.verifiers.registry import create

CAPTION = "A brown dog sleeps on a red sofa beside two books."
ZH_CAPTION = "一只棕色的狗睡在红色沙发上"


def verdict(thought: str, **extra: Any) -> Verdict:
    record = Record(id="r", label="knowledge", prompt="What is it?", extra={"images": ["a.png"], **extra})
    (found,) = run([create("visual_focus")], [Item(record, f"<think>{thought}</think> A dog.")], 20)
    return found


@pytest.mark.parametrize(
    ("thought", "extra", "score"),
    [
        ("In the image I see a dog. The picture shows a sofa. There are books in the image.", {}, 1),
        ("In the image I see a dog. The picture shows a sofa. There are books in the image.", {"caption": CAPTION}, 1),
        ("In the image I see a dog.", {"caption": CAPTION}, 1 / 3),
        ("In the image I see a dog. In the image I see a dog. In the image I see a dog.", {"caption": CAPTION}, 1 / 3),
        ("In the image I see a dog. The picture shows an elephant.", {"caption": CAPTION}, 0),
        ("In the image I see a dog. The picture shows an elephant.", {"objects": ["dog", "elephant"]}, 2 / 3),
        ("Dogs sleep a lot. Sofas are soft.", {"caption": CAPTION}, 0),
        ("图中可以看到一只棕色的狗。画面里有红色沙发。", {"caption": ZH_CAPTION}, 2 / 3),
        ("图中可以看到一只大象。", {"caption": ZH_CAPTION}, 0),
        ("狗常常睡觉。", {"caption": ZH_CAPTION}, 0),
        ("", {}, 0),
    ],
)
def test_different_grounded_sentences_earn_up_to_three(thought: str, extra: dict[str, Any], score: float) -> None:
    assert verdict(thought, **extra).score == pytest.approx(score)


def test_a_record_without_an_image_gets_an_abstention() -> None:
    assert verdict("In the image I see a dog.", images=[]).status == "abstain"


def test_only_the_thought_counts() -> None:
    record = Record(id="r", label="x", prompt="?", extra={"image": "a.png"})
    (found,) = run([create("visual_focus")], [Item(record, "<think>Hm.</think> In the image I see a dog.")], 20)
    assert found.score == 0
