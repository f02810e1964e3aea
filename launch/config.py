"""From YAML files and `key=value` overrides to a checked `Config`, and back to a file. Imports no torch.

The sections, their defaults and bounds stand in `sections.py`. Three passes, so that each can say exactly what it
found: keys against the dataclasses, types by OmegaConf, values against the bounds that the fields declare.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from safeladder.launch import recipe_files
from safeladder.launch.sections import Config, Family, Pool, Recipe, Term
from safeladder.protocol.naming import nearest

__all__ = [
    "Config",
    "ConfigError",
    "Family",
    "Pool",
    "Term",
    "checked",
    "digest",
    "load",
    "load_resolved",
    "parse",
    "save_resolved",
    "typed",
]

EMBEDDED = "embedded"  # as a file name: the package's own cluster.yaml
Typed = typing.TypeVar("Typed")
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}", re.IGNORECASE)


class ConfigError(ValueError):
    """The configuration cannot be used: says which file and key, what is wrong, and what would be right."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a file (or `embedded`) with dotted overrides such as `learner.steps=20` on top.

    What the file leaves out has the default of `sections.py`. Raises ConfigError with file, key and remedy.
    """
    return checked(parse(path, overrides), str(path))


def checked(raw: dict[str, Any], origin: str) -> Config:
    """What `parse` gave, or what was put together from several files, as a configuration; `raw` is used up. Raises ConfigError."""
    for key, message in unknown_keys(raw, Config):
        raise ConfigError(f"{origin}: {key}: {message}")
    without_route = _lay_recipe(raw, origin)
    config = typed(_spell_out(raw), Config, origin)
    for key, message in _inconsistent(config):
        raise ConfigError(f"{origin}: {key}: {message}")
    for name, pool in config.pools.items():
        pool.queues = pool.queues or [name]
    for label in without_route:
        family = config.recipe.families[label]
        family.route = recipe_files.implied_route(config, family)
    return config


def parse(path: str | Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What a YAML file says, interpolations carried out and overrides applied; no key is checked. Raises ConfigError.

    path: None for the overrides alone.
    """
    origin = "command line" if path is None else str(path)
    parsed = OmegaConf.create({}) if path is None else _parse(path)
    _override(parsed, overrides, origin)
    return _resolve(parsed, origin)


def typed(raw: Mapping[str, Any], kind: type[Typed], origin: str) -> Typed:
    """`raw` as the dataclass `kind`: its keys, their types and the bounds that its fields declare, checked. Raises ConfigError."""
    for key, message in unknown_keys(raw, kind):
        raise ConfigError(f"{origin}: {key}: {message}")
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), _escape(raw)))
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        raise ConfigError(f"{origin}: {key}{str(error).splitlines()[0]}") from None
    assert isinstance(config, kind)
    for key, message in _out_of_bounds(config):
        raise ConfigError(f"{origin}: {key}: {message}")
    return config


def load_resolved(path: Path) -> Config:
    """The configuration that a run was started with, from its own folder."""
    return load(path)


def save_resolved(config: Config, path: Path) -> None:
    """Writes every value, defaults too, so that the file alone says what the run did. `load` reads it back equal."""
    path.write_text(to_yaml(config), encoding="utf-8")


def to_yaml(config: Config) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(_escape(dataclasses.asdict(config))))


def _escape(value: Any) -> Any:
    """What looks like an interpolation once all are carried out is text, and must be read as such."""
    if isinstance(value, dict):
        return {key: _escape(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_escape(child) for child in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def digest(config: Config) -> str:
    """Sixteen hex digits that name this configuration."""
    return hashlib.blake2b(to_yaml(config).encode(), digest_size=8).hexdigest()


def _parse(path: str | Path) -> DictConfig:
    file = resources.files("safeladder.launch").joinpath("cluster.yaml") if str(path) == EMBEDDED else Path(path)
    try:
        text = file.read_text("utf-8")
    except FileNotFoundError:
        hint = " (`embedded` is the configuration that comes with the package)"
        raise ConfigError(f"{path}: there is no such file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    return _mapping(text, str(path))


def _mapping(text: str, origin: str) -> DictConfig:
    try:
        parsed = OmegaConf.create(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(parsed, DictConfig):
        raise ConfigError(f"{origin}: must hold sections such as `run:` and `pools:`, not a {type(parsed).__name__}")
    return parsed


def _resolve(parsed: DictConfig, origin: str) -> dict[str, Any]:
    """Carries out interpolations, but none that would copy the environment, secrets included, into the run's folder."""
    for key, value in _leaves(OmegaConf.to_container(parsed)):
        if isinstance(value, str) and "${oc.env" in value:
            raise ConfigError(f"{origin}: {key}: environment variables are not read, the run's folder keeps this file")
    try:
        resolved = OmegaConf.to_container(parsed, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{origin}: {str(error).splitlines()[0]}") from None
    return typing.cast(dict[str, Any], resolved)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path, value
    else:
        for key, child in items:
            yield from _leaves(child, f"{path}.{key}" if path else str(key))


def _override(parsed: DictConfig, overrides: Sequence[str], origin: str) -> None:
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"{origin}: override {override!r} is not of the form section.key=value")
        try:
            OmegaConf.update(parsed, key, yaml.safe_load(value), merge=False, force_add=True)
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise ConfigError(f"{origin}: override {override!r}: {str(error).splitlines()[0]}") from None


def _lay_recipe(raw: dict[str, Any], origin: str) -> list[str]:
    """Puts the recipe with its bases in the place of the one that names them; returns the families that name no route."""
    recipe = raw.get("recipe")
    if not isinstance(recipe, dict):
        return []
    if recipe.get("base") is None:
        recipe["families"] = recipe_files.spelled_out(recipe.get("families") or {})
    else:
        try:
            raw["recipe"] = recipe = recipe_files.resolve(recipe, _read_base)
        except recipe_files.RecipeFileError as error:
            raise ConfigError(f"{origin}: recipe.base: {error}") from None
    families = _map(recipe["families"])
    return [label for label, family in families.items() if isinstance(family, dict) and "route" not in family]


def _read_base(name: str) -> dict[str, Any]:
    """A base's file, its keys checked; its types are, once it is part of the configuration."""
    try:
        text = recipe_files.locate(name).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe.base: {name}: cannot be read: {error}") from None
    raw = _resolve(_mapping(text, name), name)
    for key, message in unknown_keys(raw, Recipe):
        raise ConfigError(f"{name}: {key}: {message}")
    return raw


def unknown_keys(raw: Any, kind: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Keys of `raw` that no dataclass under `kind` has: (dotted key, what to write instead)."""
    kind = _without_none(kind)
    arguments = typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(raw, Mapping):
        known = typing.get_type_hints(kind)
        for key, value in raw.items():
            here = f"{path}.{key}" if path else str(key)
            if key in known:
                yield from unknown_keys(value, known[key], here)
            else:
                yield here, f"unknown key{nearest(str(key), known)}"
    elif typing.get_origin(kind) is dict and isinstance(raw, Mapping):
        for key, value in raw.items():
            yield from unknown_keys(value, arguments[1], f"{path}.{key}")
    elif typing.get_origin(kind) is list and isinstance(raw, list):
        for index, value in enumerate(raw):
            yield from unknown_keys(value, arguments[0], f"{path}[{index}]")


def _without_none(kind: Any) -> Any:
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        kept = [part for part in typing.get_args(kind) if part is not type(None)]
        return kept[0] if len(kept) == 1 else kind
    return kind


_RULES = ("advantage", "length_rewards", "length_advantage", "objective", "correction", "filters")


def _spell_out(raw: dict[str, Any]) -> dict[str, Any]:
    """`objective: cpgd` is short for `objective: {cpgd: {}}`."""
    learner = _map(raw.get("learner"))
    if learner.get("correction") is False:  # what YAML makes of a bare `off`
        learner["correction"] = "off"
    for name in _RULES:
        if isinstance(learner.get(name), str):
            learner[name] = {learner[name]: {}}
        for rule, options in _map(learner.get(name)).items():
            learner[name][rule] = {} if options is None else options
        if False in _map(learner.get(name)):  # type: ignore[comparison-overlap]
            learner[name]["off"] = learner[name].pop(False)
    return raw


def _map(value: Any) -> dict[str, Any]:
    """The value if it is a map; what stands where a map should, is refused later, by its type."""
    return value if isinstance(value, dict) else {}


def _out_of_bounds(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _out_of_bounds(child, f"{path}.{key}")
    if not dataclasses.is_dataclass(value):
        return
    for declared in dataclasses.fields(value):
        here = f"{path}.{declared.name}" if path else declared.name
        child = getattr(value, declared.name)
        low, high, above = (declared.metadata.get(name) for name in ("low", "high", "above"))
        if not isinstance(child, (int, float)):
            yield from _out_of_bounds(child, here)
        elif child != child or (low is not None and child < low):
            yield here, f"must be at least {low}, not {child}"
        elif above is not None and child <= above:
            yield here, f"must be above {above}, not {child}"
        elif high is not None and child > high:
            yield here, f"must be at most {high}, not {child}"


def _inconsistent(config: Config) -> Iterator[tuple[str, str]]:
    """What one field alone does not show."""
    if not all(0 <= beta < 1 for beta in config.learner.betas):
        yield "learner.betas", f"must lie in [0, 1), not {list(config.learner.betas)}"
    if config.hub.bind != "ipc" and not re.fullmatch(r"tcp://[^\s*]+:\d{1,5}", config.hub.bind):
        yield "hub.bind", f"must be `ipc` or `tcp://host:port`, not {config.hub.bind!r}"
    if config.hub.silence_s <= config.hub.beat_s:
        yield "hub.silence_s", f"must be longer than hub.beat_s ({config.hub.beat_s:g}), or every worker counts as gone"
    for name, pool in config.pools.items():
        key = f"pools.{name}"
        if not _NAME.fullmatch(name) or name == "hub":
            yield key, "a pool's name is made of letters, digits, - and _, begins with a letter and is not `hub`"
        if (pool.actor is None) == (pool.command is None):
            yield key, "needs either `actor: module:Class` or `command: [...]`"
        if pool.command is not None and not pool.command:
            yield f"{key}.command", "is empty"
    for label, family in config.recipe.families.items():
        for verifier, term in family.terms.items():
            if not math.isfinite(term.weight):
                yield f"recipe.families.{label}.terms.{verifier}.weight", f"must be a finite number, not {term.weight}"
    for label, weight in config.data.families.items():
        if not weight >= 0:
            yield f"data.families.{label}", f"must be at least 0, not {weight}"
