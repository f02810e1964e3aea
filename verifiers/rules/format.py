"""Format: a thought in `<think>...</think>`, then an answer."""

from __future__ import annotations

import re
from dataclasses import dataclass

from safeladder.protocol.messages import Verdict
from safeladder.verifiers.contract import CLOSE, OPEN, Item, Verifier

# The released rule of SafeWork-R1's M3-RL recipe: it lets text stand before the thought and allows several blocks.
_RELEASED = re.compile(r".*<think>.+?</think>\s*\S+", re.DOTALL)


class FormatRule(Verifier):
    """1 when the text is one thought and one answer, else 0 with the fault as label.

    The strict gate wants exactly one block, nothing but space before it, and both the thought and the answer non-empty.
    """

    name = "format"
    version = "1"
    principle = "rules"

    @dataclass(frozen=True)
    class Options:
        strict: bool = True  # False: the released regular expression

    def judge_one(self, item: Item) -> Verdict:
        fault = self._fault(item.text)
        return self.ok(item, 0.0 if fault else 1.0, fault or "well formed")

    def _fault(self, text: str) -> str | None:
        if not self.options.strict:
            return None if _RELEASED.match(text) else "no thought before an answer"
        if text.count(OPEN) != 1 or text.count(CLOSE) != 1:
            return "not exactly one thought"
        before, _, rest = text.partition(OPEN)
        thought, close, answer = rest.partition(CLOSE)
        if before.strip():
            return "text before the thought"
        if not close:
            return "thought closed before it opens"
        if not thought.strip():
            return "empty thought"
        if not answer.strip():
            return "empty answer"
        return None
