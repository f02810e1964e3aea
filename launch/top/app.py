"""`safeladder top RUN`: the terminal monitor.

One thread at a time reads the logs, asks the hub and prepares what is shown; the screen only takes over what is ready, so it answers to
keys while two million lines are read. What blocks that thread is the hub's answer, for at most five seconds.
"""

from __future__ import annotations

import threading
from typing import ClassVar

from rich.console import RenderableType
from textual import on, work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import Footer, Static

from safeladder.launch.top import panels
from safeladder.launch.top.slider import Slider
from safeladder.launch.view.live import Live
from safeladder.launch.view.snapshot import configuration, snapshot, suppliers
from safeladder.launch.view.state import RunView

REFRESH_S = 1.0
WIDE = 130  # columns from which two panels stand side by side


class Monitor(App[None]):
    """view: the run, whose logs are read from here on by this object alone."""

    TITLE = "safeladder top"
    ENABLE_COMMAND_PALETTE = False
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (WIDE, "-wide")]  # noqa: RUF012 - declared so by App
    BINDINGS: ClassVar[list[BindingType]] = [Binding("q", "quit", "quit")]
    CSS = """
    #headline { height: 1; padding: 0 1; }
    #main { height: 1fr; }
    .panel { border: round $primary 50%; border-title-color: $text; padding: 0 1; height: auto; }
    .-wide #left { width: 1fr; }
    .-wide #right { width: 62; }
    .-narrow #main { layout: vertical; overflow-y: auto; }
    .-narrow #left, .-narrow #right { height: auto; width: 1fr; }
    """

    def __init__(self, view: RunView) -> None:
        super().__init__()
        self._view, self._live = view, Live(view.path)
        self._routes = suppliers(configuration(view.path))
        self._reading = threading.Lock()
        self._place = 1.0
        self.loaded = threading.Event()  # set once the logs have been read to their end for the first time

    def compose(self) -> ComposeResult:
        yield Static("reading the logs", id="headline")
        with Horizontal(id="main"):
            with VerticalScroll(id="left"):
                yield self._panel("roles", "who does what")
                yield self._panel("warnings", "warnings")
            with VerticalScroll(id="right"):
                yield self._panel("training", "training")
                yield self._panel("staleness", "age of trained groups, in steps")
        yield Slider(id="slider")
        yield Footer()

    def on_mount(self) -> None:
        self.query_one(Slider).focus()
        self.look()
        self.set_interval(REFRESH_S, self._tick)

    @on(Slider.Moved)
    def move(self, moved: Slider.Moved) -> None:
        self._place = moved.place
        if self.loaded.is_set():
            self.look()

    @work(thread=True)
    def look(self) -> None:
        """Reads what is new and shows the run where the slider stands. A look that another thread is busy with is left to it."""
        if not self._reading.acquire(blocking=False):
            return
        try:
            shown = None
            while shown != self._place:  # also where the slider was moved to meanwhile
                shown = self._place
                parts = self._parts(shown)
                self.loaded.set()
                self.call_from_thread(self._show, parts)
        finally:
            self._reading.release()

    def on_unmount(self) -> None:
        self._live.close()

    def _tick(self) -> None:
        if self._place >= 1.0:
            self.look()

    def _parts(self, place: float) -> dict[str, RenderableType]:
        """What to show, by panel."""
        view = self._view
        view.read(self._progress if not self.loaded.is_set() else None)
        alive = self._live.is_live()
        begin, end = view.span
        moment = None if place >= 1.0 else begin + place * (end - begin)
        status = self._live.status() if alive and moment is None else None
        now = snapshot(view, self._routes, moment, alive and moment is None, status)
        return {
            "headline": panels.headline(now),
            "roles": panels.roles(now, narrow=self.size.width < WIDE),
            "training": panels.training(now, view, view.rows_until(moment)),
            "staleness": panels.staleness(now, 32),
            "warnings": panels.warnings(now),
        }

    def _progress(self, share: float) -> None:
        self.call_from_thread(self._show, {"headline": f"reading the logs: {share:.0%}"})

    def _show(self, parts: dict[str, RenderableType]) -> None:
        for name, part in parts.items():
            for panel in self.query(f"#{name}").results(Static):  # none any more while the screen is being closed
                panel.update(part)

    def _panel(self, name: str, title: str) -> Static:
        panel = Static(id=name, classes="panel")
        panel.border_title = title
        return panel
