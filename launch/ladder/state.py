"""What is known of a climb: `climb.json` in its folder, written whole after each thing that stands.

runs/NAME/climb.json        this
runs/NAME/RUNG/             the run of a rung, as any run
runs/NAME/evaluations/ID/   one evaluation of one policy: its answers, and its report
runs/NAME/report.html, ladder.md, coevolution.png
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from safeladder.launch.config import ConfigError
from safeladder.launch.ladder.gate import Estimate, GateResult

FILE = "climb.json"
Standing = Literal["trained", "passed", "failed"]


class RungState(Struct):
    """source: the rung before it, or `start`. model: the checkpoint that it ends with. measures: empty until it is evaluated.

    went_on: the gate failed, and the climb went on as it was told to. train_s, evaluate_s: wall-clock seconds of the process that did it.
    """

    name: str
    source: str
    model: str
    state: Standing = "trained"
    went_on: bool = False
    measures: dict[str, Estimate] = {}
    gate: GateResult | None = None
    steps: int = 0
    train_s: float = 0.0
    evaluate_s: float = 0.0


class ClimbState(Struct):
    """ladder: digest of the start and the evaluations. begun: rung -> digest of what it was begun with.

    rungs: those that stand, in the order of climbing. table, safety, capability: the columns and the sides of the gate, as the ladder's
    file has them.
    """

    name: str
    ladder: str
    start_model: str
    table: dict[str, str] = {}
    safety: list[str] = []
    capability: list[str] = []
    start: dict[str, Estimate] = {}
    start_s: float = 0.0
    begun: dict[str, str] = {}
    rungs: dict[str, RungState] = {}

    def model(self, name: str) -> str:
        return self.rungs[name].model if name in self.rungs else self.start_model

    def measures(self, name: str) -> dict[str, Estimate]:
        return self.rungs[name].measures if name in self.rungs else self.start

    def measured(self, name: str, found: dict[str, Estimate], seconds: float) -> None:
        """Keeps what an evaluation found."""
        if name in self.rungs:
            self.rungs[name].measures, self.rungs[name].evaluate_s = found, seconds
        else:
            self.start, self.start_s = found, seconds


def is_climb(folder: Path) -> bool:
    return (folder / FILE).is_file()


def load(folder: Path) -> ClimbState:
    """Raises ConfigError."""
    try:
        return msgspec.json.decode((folder / FILE).read_bytes(), type=ClimbState)
    except FileNotFoundError:
        raise ConfigError(f"{folder} is no climb: it has no {FILE}") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{folder / FILE} is damaged: {error}") from None


def save(folder: Path, state: ClimbState) -> None:
    partial = folder / f"{FILE}.partial"
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(state)) + b"\n")
    partial.replace(folder / FILE)
