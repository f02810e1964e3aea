"""Value: whether what is said is acceptable, from a small head; labels `good` and `bad` as in SafeWork-R1's value verifier.

The released verifier is a generative judge of 72B parameters; this one is ours and far weaker. `verifiers/heads/value.md` has its figures.
"""

from __future__ import annotations

from collections.abc import Sequence

from safeladder.protocol.messages import Verdict
from safeladder.verifiers.contract import Item
from safeladder.verifiers.heads import bundle, pairs
from safeladder.verifiers.heads.verifier import HeadVerifier
from safeladder.verifiers.rules.language import written_in

_PROMPT_CHARACTERS = 400  # of the prompt's end: the head was trained on short situations


class ValueVerifier(HeadVerifier):
    """P(good) of the answer given the prompt, and its label. Abstains from an empty answer and from a Chinese one, on which the head is no
    better than chance (its card has the figure).
    """

    name = "value"
    principle = "value"
    file = bundle.FOLDER / "value.safetensors"
    labels = ("bad", "good")

    def judge(self, items: Sequence[Item]) -> list[Verdict]:
        said = [item for item in items if _reason(item) is None]
        prompts = [item.record.prompt[-_PROMPT_CHARACTERS:] for item in said]
        found = pairs.read(self._heads, prompts, [item.answer for item in said], self.options.device) if said else {}
        good = iter(found.get("acceptable", ()))
        verdicts = []
        for item in items:
            if reason := _reason(item):
                verdicts.append(self.abstain(item, reason))
                continue
            verdicts.append(self.said(item, next(good)[-1]))
        return verdicts


def _reason(item: Item) -> str | None:
    """Why an item is not judged; None where it is."""
    if not item.answer:
        return "there is no answer"
    return "the head does not read Chinese well enough" if written_in(item.answer) == "zh" else None
