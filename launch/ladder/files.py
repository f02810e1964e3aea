"""Ladder files and stage files.

A ladder names its rungs in order, what every one of them is evaluated by, and what its gate asks. A stage is a cluster file with three
keys more:

    base    a stage or cluster file that this one is laid over: a path from this file, or `embedded`
    from    the rung whose checkpoint this one begins with, `start` for the ladder's own; else the last rung
    gate    what differs from the ladder's gate

Laid over: a key of a section replaces the base's; a pool's keys replace those of the pool of that name, null takes the pool out; families
of the recipe are laid over as a recipe over its base (`recipe_files.py`), but a recipe that names a `base` replaces the one below. Paths
of records are as everywhere from the working folder.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from safeladder.launch import recipe_files
from safeladder.launch.config import EMBEDDED, Config, ConfigError, checked, parse, typed
from safeladder.launch.ladder.gate import SIDES, Gate
from safeladder.launch.sections import Policy
from safeladder.protocol.naming import nearest

START: Final = "start"
OWN: Final = ("base", "from", "gate")

Raw = dict[str, Any]


@dataclass
class LadderFile:
    """rungs: stage files, from the ladder's folder. start: the policy that the first rung begins with, and how it is asked.

    settings: keys of a cluster file laid over every rung. evaluations: name -> settings of `safeladder evaluate`, without its policy.
    table: column of the table of rungs -> the measure in it.
    """

    name: str = ""
    directory: str = "runs"
    rungs: list[str] = field(default_factory=list)
    start: Policy = field(default_factory=Policy)
    settings: dict[str, Any] = field(default_factory=dict)
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    gate: Gate = field(default_factory=Gate)
    table: dict[str, str] = field(default_factory=dict)


@dataclass
class Stage:
    """One rung as its file says. source: a rung's name or `start`; None: the last rung. raw: the cluster file that came out."""

    name: str
    source: str | None
    gate: Gate
    raw: Raw

    def config(self, model: str, directory: Path) -> Config:
        """The run's configuration, from a model's name or folder. Raises ConfigError."""
        raw = copy.deepcopy(self.raw)
        raw.setdefault("policy", {})["model"] = model
        raw["run"] = {**raw.get("run", {}), "directory": str(directory), "name": self.name}
        return checked(raw, self.name)


@dataclass
class Ladder:
    file: LadderFile
    stages: list[Stage]


def read(path: Path, overrides: Sequence[str] = ()) -> Ladder:
    """Reads a ladder with its stages; `overrides` are of the ladder's keys, such as settings.learner.steps=2. Raises ConfigError."""
    raw = parse(path, overrides)
    file = typed(raw, LadderFile, str(path))
    file.name = file.name or path.stem
    if not file.rungs:
        raise ConfigError(f"{path}: rungs: names no stage")
    stages: list[Stage] = []
    for name in file.rungs:
        stage = _stage(path.parent / name, raw.get("gate") or {}, file.settings)
        known = [START, *(earlier.name for earlier in stages)]
        if stage.name in known:
            raise ConfigError(f"{path}: rungs: {stage.name!r} stands twice, or is called `{START}`")
        if stage.source is not None and stage.source not in known:
            raise ConfigError(
                f"{path.parent / name}: from: no earlier rung {stage.source!r}{nearest(stage.source, known)}"
            )
        _check_measures(stage.gate, file.evaluations, f"{path.parent / name}: gate")
        stages.append(stage)
    return Ladder(file, stages)


def _check_measures(gate: Gate, evaluations: Mapping[str, Any], where: str) -> None:
    """Each side of a gate names measures, and each is of an evaluation that the ladder makes."""
    for side in SIDES:
        measures: list[str] = getattr(gate, side).measures
        if not measures:
            raise ConfigError(f"{where}.{side}.measures: is empty: nothing would say whether the rung kept its {side}")
        for measure in measures:
            if (name := measure.partition("/")[0]) not in evaluations:
                raise ConfigError(
                    f"{where}.{side}.measures: {measure!r}: no evaluation {name!r}{nearest(name, evaluations)}"
                )


def _stage(path: Path, gate: Raw, settings: Raw) -> Stage:
    raw = _based(path, ())
    own = {key: raw.pop(key, None) for key in OWN}
    chosen = typed(_merged(gate, own["gate"] or {}), Gate, f"{path}: gate")
    source = own["from"]
    if source is not None and not isinstance(source, str):
        raise ConfigError(f"{path}: from: must be the name of a rung, not {source!r}")
    return Stage(path.stem, source, chosen, laid_over(raw, settings))


def _based(path: Path, above: Sequence[Path]) -> Raw:
    """A stage file over all that it is based on."""
    if path in above:
        raise ConfigError(f"{path}: base: is based on itself")
    raw = parse(path)
    base = raw.pop("base", None)
    if base is None:
        return raw
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: must be a path, or `{EMBEDDED}`, not {base!r}")
    return laid_over(parse(base) if base == EMBEDDED else _based(path.parent / base, [*above, path]), raw)


def laid_over(base: Mapping[str, Any], over: Mapping[str, Any]) -> Raw:
    """`over` on top of `base`, as the module says. Raises ConfigError."""
    result = copy.deepcopy(dict(base))
    for section, value in copy.deepcopy(dict(over)).items():
        below = result.get(section)
        if not isinstance(value, dict) or not isinstance(below, dict):
            result[section] = value
        elif section == "pools":
            result[section] = _pools(below, value)
        elif section == "recipe":
            result[section] = _recipe(below, value)
        elif section == "gate":
            result[section] = _merged(below, value)
        else:
            result[section] = {**below, **value}
    return result


def _pools(below: Raw, over: Raw) -> Raw:
    pools = {name: pool for name, pool in below.items() if over.get(name, pool) is not None}
    for name, pool in over.items():
        if isinstance(pool, dict):
            pools[name] = {**pools.get(name, {}), **pool}
        elif pool is not None or name not in below:
            raise ConfigError(f"pools.{name}: must be a map, or null to take out a pool that the base has")
    return pools


def _recipe(below: Raw, over: Raw) -> Raw:
    """One that names a base, null included, takes the place of the recipe below; another is laid over it."""
    if "base" in over:
        return over
    under, above = (recipe_files.spelled_out(each.get("families") or {}) for each in (below, over))
    try:
        families = recipe_files.laid_over(under, above, "recipe.families")
    except recipe_files.RecipeFileError as error:
        raise ConfigError(str(error)) from None
    return {**below, **over, "families": families}


def _merged(below: Raw, over: Raw) -> Raw:
    return {
        **below,
        **{
            k: _merged(below[k], v) if isinstance(v, dict) and isinstance(below.get(k), dict) else v
            for k, v in over.items()
        },
    }
