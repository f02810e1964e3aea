"""Where a policy's folder is: built into the package, on this disk, or on the hub. Imports no torch, so that asking is cheap."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from safeladder.policies.builtin import BUILTIN, ModelError
from safeladder.policies.twins import SEEING

BUILD_DEADLINE_S: Final = 900.0
HUB_ID: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# What a model folder of the hub is made of. Pickled weights are left out on purpose.
HUB_FILES: Final = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")

log = structlog.get_logger()


def default_cache() -> Path:
    """Where built models are kept: `safeladder/models` below XDG_CACHE_HOME, or below ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "safeladder" / "models"


def resolve(name: str, cache: Path | None = None) -> Path:
    """The folder of the model called `name`.

    `name` is, in this order: `embedded` or `tiny` (built into `cache` on first use), a local folder with a
    `config.json`, or a hub id `owner/name` (fetched by `huggingface_hub` into its own cache, which alone is asked when
    HF_HUB_OFFLINE is set). Raises ModelError saying what was tried.
    """
    if name in BUILTIN:
        return _built(name, cache or default_cache())
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir():
        raise ModelError(f"the folder {folder} holds no config.json, so it is not a model")
    if HUB_ID.fullmatch(name):
        return _fetched(name)
    raise ModelError(f"no model {name!r}: it is none of {sorted(BUILTIN)}, no local folder, and no hub id (owner/name)")


def takes_images(name: str) -> bool | None:
    """Whether the model called `name` sees; None where that cannot be said without fetching it."""
    if name in BUILTIN:
        return name in SEEING
    try:
        settings = msgspec.json.decode((Path(name).expanduser() / "config.json").read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError):
        return None
    from safeladder.policies.vision import FAMILIES  # imports torch

    return settings.get("model_type") in FAMILIES


def _built(name: str, cache: Path) -> Path:
    """The built-in model's folder. It appears by a rename once complete, and one process builds while others wait."""
    folder_name, build = BUILTIN[name]
    folder = cache / folder_name
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{folder_name}.lock", BUILD_DEADLINE_S):
        if folder.is_dir():
            return folder
        start = time.monotonic()
        log.info("model.building", model=name, folder=str(folder))
        temporary = Path(tempfile.mkdtemp(prefix=f"{folder_name}.", suffix=".partial", dir=cache))
        try:
            build(temporary)
            temporary.chmod(0o755)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        log.info("model.built", model=name, folder=str(folder), seconds=round(time.monotonic() - start, 2))
    return folder


@contextmanager
def _locked(path: Path, deadline_s: float) -> Iterator[None]:
    """Holds an exclusive file lock, which the kernel lets go of when its holder dies."""
    end = time.monotonic() + deadline_s
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise ModelError(f"waited {deadline_s:.0f} s for {path}: another process holds it") from None
                time.sleep(0.05)
        yield


def _fetched(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except (OSError, ValueError) as error:  # what huggingface_hub raises for no network, no such model, no access
        offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
        raise ModelError(
            f"no model {name!r}: there is no such local folder, and the hub "
            f"({'its cache only: HF_HUB_OFFLINE is set' if offline else 'online'}) answered {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no reason given'}. "
            f"Give a folder, or one of {sorted(BUILTIN)}, which need no network"
        ) from error
