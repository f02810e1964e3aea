"""Where a run's events go beside its logs: a sink takes them one by one, in order of time, and makes of them what it is for.

A sink is one class in one file; `BUILT_IN` names ours, `my_package.my_module:MySink` names yours. It reads the structured logs
through `feed.py`, afterwards or a second behind a live run, so nothing of it stands in the way of the processes that are watched.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Final, Protocol

from safeladder.launch.config import ConfigError
from safeladder.launch.events import Event
from safeladder.protocol.naming import nearest

BUILT_IN: Final = {
    "otlp": "safeladder.launch.export.otlp:OtlpSink",
    "perfetto": "safeladder.launch.export.perfetto:PerfettoSink",
    "tensorboard": "safeladder.launch.export.tensorboard:TensorBoardSink",
    "wandb": "safeladder.launch.export.wandb:WandbSink",
}


class SinkError(RuntimeError):
    """What was taken cannot be brought where it belongs."""


class Sink(Protocol):
    """Takes events."""

    def take(self, event: Event) -> None:
        """A line of a log, decoded (`docs/events.md`); of an event that it does not know, a sink does nothing. Raises SinkError."""

    def close(self) -> None:
        """All that was taken is where it belongs when this returns. Raises SinkError."""


class NamedSink(Sink, Protocol):
    """One that a user can ask for. LIVE_TARGET: where under RUN/export/ it goes in a live run; None: it makes sense afterwards only."""

    LIVE_TARGET: ClassVar[str | None]

    def __init__(self, run: str, target: str) -> None:
        """run: its name. Raises ConfigError where the target cannot be used, or what the sink needs is not installed."""


def sink_class(name: str) -> type[NamedSink]:
    """A built-in name or `module:Class`. Raises ConfigError saying what could not be found."""
    module_name, _, class_name = BUILT_IN.get(name, name).partition(":")
    if not class_name:
        raise ConfigError(f"sink {name!r} is unknown{nearest(name, BUILT_IN)}")
    try:
        kind: Any = getattr(importlib.import_module(module_name), class_name, None)
    except ImportError as error:
        raise ConfigError(f"sink {name!r}: cannot import {module_name}: {error}") from error
    if not all(hasattr(kind, part) for part in ("LIVE_TARGET", "take", "close")):
        raise ConfigError(f"sink {name!r}: {class_name} of {module_name} is no safeladder.launch.export.sink.NamedSink")
    found: type[NamedSink] = kind
    return found


def needed(module: str, extra: str) -> Any:
    """A library that an extra brings. Raises ConfigError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{module} is not installed ({error}): pip install 'safeladder[{extra}]'") from None


def writable(target: str) -> BinaryIO:
    """The file, empty, and its folder if there is none. Raises ConfigError."""
    path = Path(target)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written: {error.strerror}") from None


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Those that are numbers and were measured."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
