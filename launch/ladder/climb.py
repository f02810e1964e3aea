"""`safeladder climb`: the rungs of a ladder, one after the other, each a run of `launch/run.py`.

    evaluate the start -> [ train a rung from its source's checkpoint -> evaluate it -> gate ] for each rung -> report

What stands is not done again: a rung that was trained is not trained again, one that was evaluated is not evaluated again, and one that was
interrupted goes on from its newest checkpoint, with every task trained once (the run's own promise). So going on is climbing again.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import msgspec

from safeladder.launch import run as runs
from safeladder.launch import summary
from safeladder.launch.check import check
from safeladder.launch.config import Config, ConfigError
from safeladder.launch.ladder import state as states
from safeladder.launch.ladder.evaluating import Evaluate, evaluate_policy
from safeladder.launch.ladder.files import START, Ladder, Stage
from safeladder.launch.ladder.gate import Estimate, judge
from safeladder.launch.ladder.pages import write
from safeladder.launch.ladder.state import ClimbState, RungState
from safeladder.launch.rundir import RunDirectory
from safeladder.launch.terminal import console
from safeladder.policies import checkpoint
from safeladder.protocol.naming import nearest

EXIT_DONE, EXIT_GATE = 0, 1


class ClimbError(RuntimeError):
    """A climb that cannot begin or go on; says why."""


@dataclass(frozen=True)
class Request:
    """first: the rung to begin with; those before it are passed over. only: this rung alone. go_on: past gates that fail."""

    first: str | None = None
    only: str | None = None
    go_on: bool = False


class Climb:
    """One climb in its folder."""

    def __init__(self, ladder: Ladder, stream: TextIO, evaluate: Evaluate = evaluate_policy) -> None:
        self._ladder, self._stream, self._evaluate = ladder, stream, evaluate
        self.folder = (Path(ladder.file.directory).expanduser() / ladder.file.name).absolute()
        self._console = console(stream)

    def run(self, request: Request) -> int:
        """0 when every chosen rung stands and its gate held; 1 when a gate failed; a run's own code when one failed.

        Raises ConfigError for a ladder that cannot be climbed as it is, ClimbError where the folder holds another one.
        """
        chosen = self._chosen(request)
        self._prove(chosen)
        self.folder.mkdir(parents=True, exist_ok=True)
        with runs.locked(RunDirectory(self.folder)):
            self._state = self._opened()
            code = EXIT_DONE
            for number, stage in enumerate(chosen, 1):
                if code := self._rung(stage, number, len(chosen), request.go_on):
                    break
            self._report()
        return code

    # ---------------------------------------------------------------------------------------------------- beginning

    def _chosen(self, request: Request) -> list[Stage]:
        names = [stage.name for stage in self._ladder.stages]
        for asked in (request.first, request.only):
            if asked is not None and asked not in names:
                raise ConfigError(f"the ladder has no rung {asked!r}{nearest(asked, names)}")
        if request.only is not None:
            return [stage for stage in self._ladder.stages if stage.name == request.only]
        return self._ladder.stages[names.index(request.first) if request.first else 0 :]

    def _prove(self, chosen: list[Stage]) -> None:
        """Every rung's configuration, before the first begins."""
        for stage in chosen:
            _prove(stage.name, stage.config(self._ladder.file.start.model, self.folder))

    def _opened(self) -> ClimbState:
        """The state so far. Raises ClimbError where the ladder has changed in what stands or was begun.

        Rungs to come may change; so may the gates and the table, which judge what stands.
        """
        file = self._ladder.file
        digest = _digest([msgspec.to_builtins(file.start), file.evaluations])
        state = ClimbState(file.name, digest, file.start.model)
        if states.is_climb(self.folder):
            state = states.load(self.folder)
        stages = {stage.name: _stage_digest(stage) for stage in self._ladder.stages}
        changed = [f"rung {name}" for name, begun in state.begun.items() if stages.get(name) != begun]
        if state.ladder != digest:
            changed.insert(0, "its start or its evaluations")
        if changed:
            raise ClimbError(
                f"{self.folder} was climbed with another ladder, or other settings ({', '.join(changed)}): go on with those, or give "
                "this one another `name`"
            )
        state.table = file.table
        state.safety, state.capability = file.gate.safety.measures, file.gate.capability.measures
        return state

    # -------------------------------------------------------------------------------------------------------- rungs

    def _rung(self, stage: Stage, number: int, count: int, go_on: bool) -> int:
        """Brings one rung to a verdict. The exit code that ends the climb, or 0."""
        source = self._source(stage)
        self._say(f"rung {number} of {count}: {stage.name}, from {source}")
        self._measure(source)
        before = self._state.measures(source)
        judge(stage.gate, before, before)  # a measure that is missing is told before hours of training
        if stage.name not in self._state.rungs and (code := self._train(stage, source)):
            return code
        self._measure(stage.name)
        rung = self._state.rungs[stage.name]
        rung.gate = judge(stage.gate, before, rung.measures)
        go_on = go_on or stage.gate.on_failure == "go_on"
        rung.state, rung.went_on = ("passed", False) if rung.gate.holds else ("failed", go_on)
        self._save()
        for side, result in rung.gate.sides.items():
            self._say(f"  {side}: {result.why}")
        if rung.gate.holds or go_on:
            return EXIT_DONE
        self._say(f"the gate of {stage.name} failed; the climb stops here (--go-on goes on all the same)")
        return EXIT_GATE

    def _source(self, stage: Stage) -> str:
        """What a rung begins with: what it names, or the last rung before it that stands, or the start."""
        if stage.name in self._state.rungs:
            return self._state.rungs[stage.name].source
        if stage.source is not None:
            if stage.source != START and stage.source not in self._state.rungs:
                raise ClimbError(f"rung {stage.name} begins with {stage.source}, which has not been climbed")
            return stage.source
        names = [each.name for each in self._ladder.stages]
        before = [name for name in names[: names.index(stage.name)] if name in self._state.rungs]
        return before[-1] if before else START

    def _train(self, stage: Stage, source: str) -> int:
        """The run of a rung, or the rest of it. The run's exit code."""
        folder = self.folder / stage.name
        begun = time.monotonic()
        self._state.begun[stage.name] = _stage_digest(stage)
        self._save()
        if (folder / "config.yaml").exists():
            run, config = runs.reopen(folder)
        else:
            config = stage.config(self._state.model(source), self.folder)
            run = runs.create(config)
        if not _is_done(run):  # else the climb died just after the run had ended
            _prove(stage.name, config)
            with runs.forking(config) as prefork:
                outcome = runs.launch(config, run, self._stream, prefork)
            if outcome.code:
                self._say(f"the run of {stage.name} ended: {outcome.reason}; `safeladder climb` again goes on with it")
                return outcome.code
        newest = checkpoint.latest(run.checkpoints)
        if newest is None:
            raise ClimbError(
                f"the run of {stage.name} ended without a checkpoint: it made no step; had its data a record?"
            )
        self._state.rungs[stage.name] = RungState(
            stage.name,
            source,
            str(newest),
            steps=checkpoint.read_state(newest).step,
            train_s=round(time.monotonic() - begun, 1),
        )
        self._save()
        return 0

    def _measure(self, name: str) -> None:
        """Evaluates the start or a rung, unless that stands. What an interrupted evaluation has answered is not asked again."""
        if self._state.measures(name):
            return
        model, policy = self._state.model(name), self._ladder.file.start
        if name != START:
            policy = next(s for s in self._ladder.stages if s.name == name).config(model, self.folder).policy
        begun = time.monotonic()
        found: dict[str, Estimate] = {}
        for evaluation, settings in self._ladder.file.evaluations.items():
            self._say(f"  evaluation {evaluation} of {name}")
            out = self.folder / "evaluations" / f"{name}-{evaluation}"
            found |= self._evaluate(evaluation, settings, model, policy, out, self._stream)
        self._state.measured(name, found, round(time.monotonic() - begun, 1))
        self._save()

    def _report(self) -> None:
        """The page, the table and the picture, also of a climb that stopped."""
        if self._state.rungs:
            self._say(f"report {write(self.folder, self._state)}")

    def _save(self) -> None:
        states.save(self.folder, self._state)

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False)


def _prove(rung: str, config: Config) -> None:
    """Raises ConfigError for what `safeladder check` calls an error."""
    if wrong := [finding for finding in check(config) if finding.level == "error"]:
        said = "; ".join(f"{finding.key}: {finding.message}" for finding in wrong)
        raise ConfigError(f"rung {rung}: {said}")


def _stage_digest(stage: Stage) -> str:
    return _digest([stage.name, stage.source, stage.raw])


def _digest(value: object) -> str:
    return hashlib.blake2b(msgspec.json.encode(value, order="deterministic"), digest_size=8).hexdigest()


def _is_done(run: RunDirectory) -> bool:
    """Whether a run has come to its end in order."""
    return run.summary.exists() and summary.load(run)["exit"]["code"] == 0
