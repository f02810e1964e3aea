"""Grounded: whether the answer follows from the evidence that the record carries, from a small head. This verifier is ours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import torch

from safeladder.protocol.messages import Record, Verdict
from safeladder.verifiers.contract import Item
from safeladder.verifiers.heads import bundle, grounding, pairs
from safeladder.verifiers.heads.verifier import HeadVerifier

FIELDS: Final = ("evidence", "document")  # of the record's extra, the first that holds text
_NAME: Final = re.compile(r"[\x21-\x7e]+")  # one word of plain signs: a document's name, which is no evidence


class GroundedVerifier(HeadVerifier):
    """P(the evidence supports the answer), labels `grounded` and `ungrounded`. Abstains where there is no evidence or no answer."""

    name = "grounded"
    principle = "knowledge"
    file = bundle.FOLDER / "grounded.safetensors"
    labels = ("ungrounded", "grounded")

    def judge(self, items: Sequence[Item]) -> list[Verdict]:
        given = [(item, evidence(item.record)) for item in items]
        told = [(item, text) for item, text in given if text and item.answer]
        shares = iter(self._shares(told) if told else ())
        verdicts = []
        for item, text in given:
            if not text or not item.answer:
                reason = "the record carries no evidence" if not text else "there is no answer"
                verdicts.append(self.abstain(item, reason))
                continue
            verdicts.append(self.said(item, next(shares)))
        return verdicts

    def _shares(self, told: Sequence[tuple[Item, str]]) -> list[float]:
        context = torch.tensor([grounding.features(item.record.prompt, text, item.answer) for item, text in told])
        firsts = [f"{text}\n\n{item.record.prompt}" for item, text in told]
        answers = [item.answer for item, _ in told]
        found = pairs.read(self._heads, firsts, answers, self.options.device, context)
        return [classes[-1] for classes in found["grounded"]]


def evidence(record: Record) -> str:
    """The text that the answer must follow from; empty where the record carries none."""
    for name in FIELDS:
        value = record.extra.get(name)
        if isinstance(value, str) and value.strip() and not _NAME.fullmatch(value.strip()):
            return value.strip()
        if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
            return "\n".join(value).strip()
    return ""
