"""A verifier actor of one's own, whole: does an answer keep to a number of words? `docs/actors.md` walks through it."""

from dataclasses import dataclass

import msgspec

from safeladder.actors.actor import Actor, Delivery
from safeladder.protocol.messages import Group, Verdict
from safeladder.verifiers.rules.words import words


class WordLimit(Actor):
    """Adds one verdict a completion: score 1 up to `max_words` words, beyond them max_words / words."""

    role = "verifier"

    @dataclass
    class Options:
        max_words: int = 50

    def handle(self, delivery: Delivery) -> Group:
        group = delivery.group
        texts = [group.prefix + completion.text for completion in group.completions]
        verdicts = [self._judge(sample, len(words(text))) for sample, text in enumerate(texts)]
        return msgspec.structs.replace(group, verdicts=[*group.verdicts, *verdicts])

    def _judge(self, sample: int, count: int) -> Verdict:
        limit = self.options.max_words
        score, label = (1.0, "within") if count <= limit else (limit / count, "over")
        return Verdict(sample, "word_limit", "1", "rules", "ok", label=label, score=score, rationale=f"{count} words")
