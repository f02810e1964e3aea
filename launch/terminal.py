"""Writing for people: rich on a terminal, and elsewhere whole lines that can be searched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

PIPE_COLUMNS = 160


def console(stream: TextIO) -> Console:
    """A console on the stream. Outside a terminal its lines are wide enough for tables to stay one line a row."""
    written = Console(file=stream, highlight=False, soft_wrap=True)
    if not written.is_terminal:
        written.width = PIPE_COLUMNS
    return written


@contextmanager
def counting(what: str, total: int, stream: TextIO) -> Iterator[Callable[[int], None]]:
    """Gives what is to be told of each number of things done. A bar on a terminal; elsewhere a line whenever another tenth is done."""
    out = console(stream)
    if out.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=out) as bar:
            task = bar.add_task(what, total=total)
            yield lambda count: bar.advance(task, count)
        return
    state = {"done": 0, "shown": 0}

    def advance(count: int) -> None:
        state["done"] += count
        if state["done"] * 10 // max(1, total) > state["shown"]:
            state["shown"] = state["done"] * 10 // max(1, total)
            out.print(f"{what}: {state['done']}/{total}", markup=False)

    yield advance
