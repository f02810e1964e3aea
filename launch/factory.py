"""From a pool's entry in `cluster.yaml` to the actor class and its checked options."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from safeladder.launch.config import ConfigError, Pool
from safeladder.protocol.naming import nearest


def actor_class(pool: Pool) -> Any:
    """The class that `pool.actor` names as `module:Class`. Raises ConfigError saying what could not be found."""
    module_name, _, class_name = (pool.actor or "").partition(":")
    if not class_name:
        raise ConfigError(f"actor {pool.actor!r} is not of the form my_package.my_module:MyActor")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"actor {pool.actor!r}: cannot import {module_name}: {error}") from error
    kind = getattr(module, class_name, None)
    if kind is None:
        raise ConfigError(f"actor {pool.actor!r}: {module_name} has no {class_name}{nearest(class_name, dir(module))}")
    if not (
        isinstance(kind, type) and hasattr(kind, "handle") and dataclasses.is_dataclass(getattr(kind, "Options", None))
    ):
        raise ConfigError(f"actor {pool.actor!r} is not a safeladder.actors.actor.Actor with an Options dataclass")
    return kind


def actor_options(kind: Any, pool: Pool, key: str) -> Any:
    """The pool's `options` as an instance of the actor's `Options`; unknown keys and wrong types raise ConfigError."""
    known = {field.name for field in dataclasses.fields(kind.Options)}
    for name in pool.options:
        if name not in known:
            raise ConfigError(f"{key}.{name}: {kind.__name__} has no such option{nearest(str(name), known)}")
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind.Options), pool.options))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from None
