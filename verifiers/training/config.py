"""The configuration of heads to train, read strictly: an unknown key fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from safeladder.verifiers.training.fit import Fitting
from safeladder.verifiers.training.stages.leakage import Gate


class ConfigError(ValueError):
    """A training configuration does not say what it must, and which key is at fault."""


class Source(msgspec.Struct, forbid_unknown_fields=True):
    """One set. `reader`: its name in `readers.READERS`, with `options`; `file`: relative to the data folder (`embedded` for the task file
    that ships); `held_out`: only measured on, never trained on."""

    name: str
    reader: str = "rows"
    file: str = ""
    options: dict[str, Any] = {}
    licence: str = ""
    held_out: bool = False


class HeadConfig(msgspec.Struct, forbid_unknown_fields=True):
    """One head. `takes`: see `heads.bundle.Said`; `context: grounding`: the numbers of `heads/grounding.py`.

    `baseline`: measure a bag of words (`baseline.py`) on the same rows. `complied`: see `heads.model.Shape`; it wants heads
    `prompt_harm` and `refusal` before it. `catch`: share of the positives that 0.5 has to catch, see
    `fit.lean`; 0: the calibrated probabilities stay as they are.
    """

    reads: Literal["first", "second", "both"]
    classes: list[str]
    data: list[Source]
    hidden: int = 48
    wide: bool = True
    windowed: bool = False
    divides: bool = False
    complied: float = 0.0
    takes: list[str] = []
    context: Literal["", "grounding"] = ""
    fitting: Fitting = Fitting()
    deduplicate: bool = True
    baseline: bool = False
    catch: float = 0.0


class HeadsConfig(msgspec.Struct, forbid_unknown_fields=True):
    """A file of heads. Paths are relative to the configuration. `evaluation`: files that no training row may share text with.

    `templates` and `planted`: files of jailbreak wrappers and of sentences to plant, for training; every third is kept for measuring.
    `folds`: lists of sources; for each, the heads that saw them are trained without them and measured on them, and thrown away.
    """

    kind: Literal["heads"]
    out: str
    data: str
    heads: dict[str, HeadConfig]
    templates: str = ""
    planted: str = ""
    evaluation: list[str] = []
    folds: list[list[str]] = []
    gate: Gate = Gate()
    seed: int = 20_250_728


def load(path: Path) -> HeadsConfig:
    """The configuration in a YAML file. Raises ConfigError."""
    try:
        return msgspec.convert(yaml.safe_load(path.read_text(encoding="utf-8")), HeadsConfig)
    except FileNotFoundError:
        raise ConfigError(f"no configuration at {path}") from None
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {error}") from None
