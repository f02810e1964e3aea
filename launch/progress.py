"""What a user sees of a run: a bar that moves with the optimizer steps, or one line a step where there is no terminal.

Everything comes from the learner's log; other processes show only when they are restarted or fail (`notice`).
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TextIO

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from safeladder.launch.events import Event, Tail
from safeladder.launch.terminal import console

POLL_S = 0.25


class StepProgress:
    """Follows RUN/logs/learner-*.jsonl in a thread until `close`, which shows what is left first."""

    def __init__(self, logs: Path, steps: int, stream: TextIO, from_end: bool = False) -> None:
        self._tail = Tail(logs, "learner-*.jsonl", from_end)
        self._console = console(stream)
        self._steps = steps
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[detail]}"), console=self._console)
            self._task = self._bar.add_task("training", total=steps, detail="starting")
            self._bar.start()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)
        self._thread.start()

    def notice(self, text: str) -> None:
        """A line for the user, above the bar."""
        self._console.print(text, markup=False)

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        if self._bar is not None:
            self._bar.stop()

    def _follow(self) -> None:
        last = False
        while not last:
            last = self._closed.wait(POLL_S)  # one more look after the end
            for event in self._tail.read():
                if event.get("event") == "step.completed":
                    self._show(event)

    def _show(self, event: Event) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task, completed=event["step"], total=event.get("steps", self._steps), detail=detail(event)
            )
        else:
            self._console.print(
                f"step {event['step']}/{event.get('steps', self._steps)}  {detail(event)}", markup=False
            )


def detail(event: Event) -> str:
    """`reward 0.412  unsafe 0.06  31 tokens/s  staleness 1  4.2 s`; what the step did not measure is left out."""
    parts = []
    for key, pattern in _SHOWN.items():
        value = event.get(key)
        if isinstance(value, (int, float)):
            parts.append(pattern.format(value))
    return "  ".join(parts)


_SHOWN = {
    "reward_mean": "reward {:.3f}",
    "unsafe_rate": "unsafe {:.2f}",
    "loss": "loss {:.4f}",
    "kl": "kl {:.4f}",
    "tokens_per_s": "{:.0f} tokens/s",
    "staleness_max": "staleness {:.0f}",
    "step_s": "{:.1f} s",
}
