"""Beam search over steps: the best `width` prefixes of all are continued by `candidates` steps each (Snell et al. 2024, section 5.2).

A complete answer leaves the beam and makes room for a smaller one: the search ends when as many answers are complete as the beam is
wide, or nothing is left to continue.
"""

from __future__ import annotations

from dataclasses import dataclass

from safeladder.policies.search.base import Search, Strategy


class Beam(Strategy):
    name = "beam"

    @dataclass(frozen=True)
    class Options:
        width: int = 4
        candidates: int = 4

    async def run(self, search: Search) -> None:
        beam, done = [search.tree.root], 0
        while beam and not search.stopped:
            # the root alone must bring forth the whole beam
            count = self.options.candidates * (self.options.width if beam[0].parent is None else 1)
            children = [child for each in await search.expand(beam, count) for child in each]
            kept = search.better(children, self.options.width - done)
            done += sum(node.fate == "final" for node in kept)
            beam = [node for node in kept if node.fate == "open"]
            if done >= self.options.width:
                for node in beam:
                    node.fate, node.reason = "pruned", "enough answers are complete"
                return
