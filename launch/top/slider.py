"""A line that shows where in a run's time the monitor stands, and takes it elsewhere by key or click."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.events import Click
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget


class Slider(Widget, can_focus=True):
    """place: 0 at the beginning of the run, 1 at its end; standing at the end follows a run that goes on."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "move(-0.01)", "back"),
        Binding("right", "move(0.01)", "on"),
        Binding("left_square_bracket", "move(-0.1)", "far back", show=False),
        Binding("right_square_bracket", "move(0.1)", "far on", show=False),
        Binding("home", "to(0)", "begin"),
        Binding("end", "to(1)", "end"),
        Binding("space", "play", "play"),
    ]
    DEFAULT_CSS = "Slider { height: 1; padding: 0 1; } Slider:focus { background: $boost; }"
    FRAME_S: ClassVar[float] = 0.25
    place: reactive[float] = reactive(1.0)

    class Moved(Message):
        """The slider stands elsewhere."""

        def __init__(self, place: float) -> None:
            super().__init__()
            self.place = place

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._playing = False

    def on_mount(self) -> None:
        self.set_interval(self.FRAME_S, self._frame)

    def render(self) -> Text:
        width = max(1, self.size.width - 16)
        at = round(self.place * (width - 1))
        mark = "▶" if self._playing else "●"
        return Text.assemble(
            ("━" * at, "cyan"), (mark, "bold"), ("─" * (width - 1 - at), "dim"), f"  {self.place:.0%} of run"
        )

    def validate_place(self, place: float) -> float:
        return min(1.0, max(0.0, place))

    def watch_place(self, place: float) -> None:
        self.post_message(self.Moved(place))

    def action_move(self, by: float) -> None:
        self.place = round(self.place + by, 6)

    def action_to(self, place: float) -> None:
        self.place = float(place)

    def action_play(self) -> None:
        """From here on, or from the beginning where it stands at the end."""
        self._playing = not self._playing
        if self._playing and self.place >= 1.0:
            self.place = 0.0
        self.refresh()

    def on_click(self, event: Click) -> None:
        self.place = (event.x - 1) / max(1, self.size.width - 17)

    def _frame(self) -> None:
        if self._playing:
            self.place = self.place + 0.01
            self._playing = self.place < 1.0
            self.refresh()
