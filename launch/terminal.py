"""Writing for people: rich on a terminal, and elsewhere whole lines that can be searched."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console

PIPE_COLUMNS = 160


def console(stream: TextIO) -> Console:
    """A console on the stream. Outside a terminal its lines are wide enough for tables to stay one line a row."""
    written = Console(file=stream, highlight=False, soft_wrap=True)
    if not written.is_terminal:
        written.width = PIPE_COLUMNS
    return written
