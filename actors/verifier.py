"""Verifier pool: reads what was generated and adds typed verdicts.

Inbox: groups. Outbox: the same groups with the verdicts of this pool's verifiers. Blocks on nothing but its own verifiers, each under
`timeout_s`; one that fails leaves verdicts of status error or timeout, which are never scores, and the sample is
tried again up to `tries` times before they stand. If this process dies, the hub gives its groups to another replica.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from safeladder.actors.actor import Actor, Delivery
from safeladder.launch.config import ConfigError
from safeladder.protocol import messages as m
from safeladder.verifiers.contract import Item, Verifier, run
from safeladder.verifiers.registry import BadOptions, UnknownVerifier, create


class VerifierPool(Actor):
    """Runs the verifiers that its options name, on every completion of a group."""

    role = "verifier"

    @dataclass
    class Options:
        """`verifiers`: name -> its options, built-in names or `my_package.my_module:MyVerifier`."""

        verifiers: dict[str, Any] = field(default_factory=dict)
        timeout_s: float = 60.0
        tries: int = 2

    async def start(self) -> None:
        try:
            self._verifiers: list[Verifier] = [
                create(name, options or {}) for name, options in self.options.verifiers.items()
            ]
        except (UnknownVerifier, BadOptions) as error:
            raise ConfigError(f"pools.{self.context.name.partition('/')[0]}.options.verifiers: {error}") from error

    def handle(self, delivery: Delivery) -> m.Group:
        group = delivery.group
        items = [
            Item(group.record, group.prefix + completion.text, sample, completion.finish)
            for sample, completion in enumerate(group.completions)
        ]
        verdicts: list[m.Verdict] = []
        for verifier in self._verifiers:
            verdicts += self._judge(verifier, items)
            self.worked()
        return msgspec.structs.replace(group, verdicts=[*group.verdicts, *verdicts])

    def _judge(self, verifier: Verifier, items: list[Item]) -> list[m.Verdict]:
        verdicts = run([verifier], items, self.options.timeout_s)
        for _ in range(self.options.tries - 1):
            failed = [index for index, verdict in enumerate(verdicts) if verdict.status in ("error", "timeout")]
            if not failed:
                break
            for index, verdict in zip(
                failed, run([verifier], [items[i] for i in failed], self.options.timeout_s), strict=True
            ):
                verdicts[index] = verdict
        for verdict in verdicts:
            if verdict.status in ("error", "timeout"):
                self.log.warning(
                    "verdict.failed", verifier=verdict.verifier, status=verdict.status, error=verdict.error
                )
        return verdicts
