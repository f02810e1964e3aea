r"""Boxed format: a thought in `<think>...</think>`, then a `\boxed{...}` outside of it.

The format term of the released recipe for calculations (`geo3k_rule`, `gsm8k_rule`), where it stands in for the rule `format`.
"""

from __future__ import annotations

from safeladder.protocol.messages import Verdict
from safeladder.verifiers.contract import CLOSE, OPEN, Item, Verifier
from safeladder.verifiers.rules.boxed import boxed


class BoxedFormatRule(Verifier):
    r"""1 when the text opens with one non-empty thought and the answer after it holds a complete `\boxed{...}`, else 0."""

    name = "boxed_format"
    version = "1"
    principle = "rules"

    def judge_one(self, item: Item) -> Verdict:
        fault = self._fault(item)
        return self.ok(item, 0.0 if fault else 1.0, fault or "well formed")

    def _fault(self, item: Item) -> str | None:
        if item.text.count(OPEN) != 1 or item.text.count(CLOSE) != 1 or not item.text.lstrip().startswith(OPEN):
            return "not one thought before the answer"
        if not item.thought:
            return "empty thought"
        return None if boxed(item.answer) else "no box after the thought"
