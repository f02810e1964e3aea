"""What `safeladder ask` shows of a search: each step as it comes, what was rejected and why, and what it came to."""

from __future__ import annotations

from typing import Any, Final, TextIO

from rich.text import Text

from safeladder.launch.terminal import console
from safeladder.policies.search.tree import Node
from safeladder.protocol import messages as m

STYLES: Final = {"final": "green", "vetoed": "red", "unscored": "yellow", "pruned": "dim", "open": ""}
SHOWN: Final = 100  # characters of a step


class Report:
    """Writes to a stream of its own (stderr), so that the answer alone is what `safeladder ask` prints."""

    def __init__(self, stream: TextIO) -> None:
        self._out = console(stream)

    def step(self, node: Node) -> None:
        """A step has been judged."""
        self._line(node.record(), f"step {len(node.place)}")

    def finish(self, answer: m.Answer) -> None:
        """The rejected steps with the reasons, what the strategy did, and the sums."""
        rejected = [node for node in answer.tree if node["reason"]]
        if rejected:
            self._out.print(f"\n{len(rejected)} steps were rejected:")
        for node in rejected:
            self._line(node, "  ")
        for note in answer.notes:
            self._out.print(Text(f"{note['kind']} at step {note['step']}: {note['reason']}", style="yellow"))
        for source in answer.sources:
            self._out.print(Text(f"source: {source.get('title') or source.get('id') or source}"))
        spent = answer.spent
        parts = [
            f"strategy {answer.strategy}",
            f"context {answer.context}",
            f"ended: {answer.ended}",
            *([f"confidence {answer.confidence:.2f}"] if answer.confidence is not None else []),
            f"{spent.get('tokens', 0):.0f} tokens, {spent.get('calls', 0):.0f} calls, {spent.get('seconds', 0):.1f} s",
        ]
        self._out.print("\n" + "; ".join(parts), markup=False)
        if answer.note:
            self._out.print(Text(answer.note, style="red"))

    def _line(self, node: dict[str, Any], head: str) -> None:
        scores = "  ".join(f"{name} {value:.2f}" for name, value in node["scores"].items())
        text = " ".join(node["text"].split())
        shown = text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
        why = f" ({node['reason']})" if node["reason"] else ""
        self._out.print(
            Text(f"{head} #{node['node']}  {scores or 'no score'}  {node['fate']}{why}  ", style=STYLES[node["fate"]]),
            end="",
        )
        self._out.print(Text(shown))
