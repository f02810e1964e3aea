"""Who answers: a policy on an engine in this process, or a model behind an address. Both give one `Response` a request.

`respondent` picks one. `identity` is all of it that decides an answer, for the digest under which answers are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import msgspec

from safeladder.launch.config import ConfigError, load_resolved
from safeladder.launch.evaluation.settings import PLAIN, Settings
from safeladder.launch.evaluation.store import Response
from safeladder.protocol.images import has_images, images
from safeladder.protocol.messages import Record, Turn


@dataclass(frozen=True)
class Task:
    """A record and which of its samples is asked for."""

    record: Record
    sample: int = 0

    @property
    def item(self) -> str:
        """Sixteen hex digits that name what the policy sees, and the sample. Raises ImageError."""
        record = self.record
        seen = [image.hash for image in images(record)] if has_images(record) else []
        parts = [
            record.prompt,
            record.choices,
            record.extra.get("turns"),
            record.extra.get("system"),
            seen,
            record.language,
            self.sample,
        ]
        return blake2b(msgspec.msgpack.encode(parts, order="deterministic"), digest_size=8).hexdigest()

    def seed(self, seed: int) -> int:
        digest = blake2b(f"{seed}/{self.item}".encode(), digest_size=6, key=b"safeladder.evaluate.1").digest()
        return int.from_bytes(digest, "little")


class Respondent(Protocol):
    """Answers tasks, as many at once as are asked. `real`: whether the answers are a model's."""

    concurrency: int
    real: bool

    def identity(self) -> Any:
        """JSON-like; equal where the same task gets the same answer."""

    async def start(self) -> None:
        """Makes it ready. Raises what its model or address is not fit for."""

    async def stop(self) -> None: ...

    async def answer(self, task: Task) -> Response:
        """Never raises for a task: what fails is a Response with an error."""


@dataclass(frozen=True)
class Prompting:
    """What stands around every question."""

    system: str | None = None
    prefix: str = ""
    shots: tuple[tuple[str, str], ...] = ()

    def system_of(self, record: Record) -> str | None:
        """The system message: the record's own `system`, else the one for all."""
        own = record.extra.get("system")
        return str(own) if own else self.system

    def turns(self, record: Record) -> list[tuple[str, str]]:
        """(user, assistant) pairs before the question: the record's own conversation, or the shots. Raises ValueError."""
        given = msgspec.convert(record.extra.get("turns") or [], list[Turn])
        roles = [turn.role for turn in given]
        if roles != ["user", "assistant"] * (len(roles) // 2):
            raise ValueError(f"{record.id!r}: earlier turns are pairs of user and assistant, these are {roles}")
        contents = [turn.content for turn in given]
        return list(zip(contents[::2], contents[1::2], strict=True)) or list(self.shots)


def question(record: Record) -> str:
    """The user's turn: the prompt, with lettered choices under it where the record has some."""
    choices = [f"{chr(ord('A') + index)}. {choice}" for index, choice in enumerate(record.choices or [])]
    return "\n".join([record.prompt, *choices])


def respondent(settings: Settings) -> Respondent:
    """Raises ConfigError for a combination that cannot be, ModelError for a policy that is not there."""
    if settings.endpoint is not None:
        from safeladder.launch.evaluation.remote import RemoteRespondent

        if settings.strategy != PLAIN:
            raise ConfigError(
                f"strategy: {settings.strategy!r} needs the policy's tokens; behind an endpoint there is only `{PLAIN}`"
            )
        return RemoteRespondent(settings, _prompting(settings, None))
    from safeladder.launch.evaluation.local import LocalRespondent

    folder, run = located(settings)
    return LocalRespondent(settings, _prompting(settings, run), folder)


def located(settings: Settings) -> tuple[Path, Path | None]:
    """The policy's model folder, and the run that it is of. Raises ConfigError, ModelError."""
    from safeladder.policies.finding import resolve

    given = Path(settings.policy).expanduser()
    if (given / "config.yaml").is_file() and (given / "run.json").is_file():
        from safeladder.policies import checkpoint

        newest = checkpoint.latest(given / "checkpoints")
        if newest is None:
            raise ConfigError(f"policy: the run {given} has no checkpoint yet")
        return newest, given
    folder = resolve(settings.policy, Path(settings.cache) if settings.cache else None)
    run = folder.parent.parent
    return folder, run if (run / "config.yaml").is_file() and (run / "run.json").is_file() else None


def fingerprint(folder: Path) -> list[Any]:
    """Names a model's content without reading its weights: a checkpoint's manifest, or name, size and time of each file."""
    manifest = folder / "manifest.json"
    if manifest.is_file():
        return [manifest.read_bytes()]
    files: Sequence[Path] = sorted(path for path in folder.iterdir() if path.is_file())
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def _prompting(settings: Settings, run: Path | None) -> Prompting:
    policy = load_resolved(run / "config.yaml").policy if run is not None else None
    system, prefix, shots = settings.system, settings.prefix, settings.shots
    if policy is not None:
        system = policy.system if system is None else system
        prefix = policy.prefix if prefix is None else prefix
        shots = policy.shots if shots is None else shots
    return Prompting(system, prefix or "", tuple((shot.user, shot.assistant) for shot in shots or []))
