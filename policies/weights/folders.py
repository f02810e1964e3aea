"""Where publications stand, and which of them may go."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Final

import structlog

from safeladder.policies.weights.manifest import FOLDER, WeightsError, folder, read_manifest

PARTIAL: Final = ".partial"
SHARED_MEMORY: Final = Path("/dev/shm")  # a tmpfs on Linux: files in it are shared memory
ROOM_FACTOR: Final = 3  # the full version in use, the one being written, and one that a slow reader still holds

log = structlog.get_logger()


def versions(directory: Path) -> list[int]:
    """The versions that stand in `directory`, ascending. Not verified."""
    if not directory.is_dir():
        return []
    found = (FOLDER.fullmatch(entry.name) for entry in directory.iterdir())
    return sorted(int(match[1]) for match in found if match)


def latest(directory: Path) -> int | None:
    """The highest version in `directory`, None when there is none."""
    return max(versions(directory), default=None)


def retire(directory: Path, keep: int, in_use: Collection[int] = (), key: bytes | None = None) -> list[int]:
    """Removes all but the newest `keep` (>= 1) versions, those `in_use`, and the bases that these rest on, down to a full
    version each: whoever comes late can catch up from there. Returns what it removed.

    A version vanishes by a rename first, so a reader finds it whole or not at all; one that has opened it keeps it.
    A kept version whose manifest cannot be verified rests on nothing.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; the newest version at least must stay")
    there = versions(directory)
    kept = {*there[-keep:], *in_use} & set(there)
    for version in sorted(kept, reverse=True):
        kept |= _bases(directory, version, key)
    old = [version for version in there if version not in kept]
    for version in old:
        leaving = directory / f".{folder(directory, version).name}.{os.getpid()}{PARTIAL}"
        folder(directory, version).rename(leaving)
        shutil.rmtree(leaving)
    return old


def _bases(directory: Path, version: int, key: bytes | None) -> set[int]:
    """The versions that `version` is a difference to, one after the other."""
    found: set[int] = set()
    base: int | None = version
    while base is not None:
        try:
            base = read_manifest(folder(directory, base), key).base
        except WeightsError as error:
            log.warning("weights.unreadable", version=base, error=str(error))
            break
        if base is None or base in found:
            break
        found.add(base)
    return found


def home(run_name: str, needed_bytes: int, fallback: Path, shared_memory: Path = SHARED_MEMORY) -> Path:
    """The directory that a run publishes into, created: in shared memory when three publications of `needed_bytes`
    fit there, otherwise `fallback`, with a warning.

    The shared one lies below a folder that only this user can enter, and is named after the run and after `fallback`,
    so that two runs of one name do not meet. Whoever ends the run removes it.
    """
    reason = _unfit(shared_memory, ROOM_FACTOR * needed_bytes)
    if reason is None:
        own = shared_memory / f"safeladder-{os.getuid()}"
        own.mkdir(mode=0o700, exist_ok=True)
        found = own.lstat()
        # Anybody can create names in shared memory: a folder or link put there beforehand must not receive weights.
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
            place = hashlib.sha256(str(fallback.resolve()).encode()).hexdigest()[:8]
            directory = own / f"{run_name}-{place}"
            directory.mkdir(exist_ok=True)
            return directory
        reason = f"{own} is not a folder of this user's own with mode 0700"
    log.warning("weights.no_shared_memory", reason=reason, directory=str(fallback))
    fallback.mkdir(parents=True, exist_ok=True)
    return fallback


def _unfit(shared_memory: Path, needed_bytes: int) -> str | None:
    if not (shared_memory.is_dir() and os.access(shared_memory, os.W_OK)):
        return f"{shared_memory} is not a writable folder"
    free = shutil.disk_usage(shared_memory).free
    if free < needed_bytes:
        return f"{shared_memory} has {free:,} bytes free, {needed_bytes:,} are needed"
    return None
