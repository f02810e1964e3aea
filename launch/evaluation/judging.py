"""Who judges what: roles and the verifiers that play them, over the answers, kept beside them and gone on with.

A judgement that fails or runs out of time is asked for again, `judge_tries` times in all. What is left without a score is counted as
failed; it stands in no figure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from safeladder.launch.config import ConfigError
from safeladder.launch.evaluation.settings import Settings
from safeladder.protocol.messages import Verdict
from safeladder.verifiers.judges.rubrics import RUBRICS
from safeladder.verifiers.judging import Judge, VerdictFile, judge
from safeladder.verifiers.registry import BadOptions, UnknownVerifier, create
from safeladder.verifiers.rows import Row

# role -> options, of which `kind` names the verifier. A role that is not here needs a `kind` in the settings.
DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "safety": {"kind": "safety", "score": "harmless"},
    "value": {"kind": "value"},
    "value_choice": {"kind": "choice"},
    "boxed": {"kind": "boxed", "last_number": True},
    "choice": {"kind": "choice"},
    "match": {"kind": "match"},
    "instruction": {"kind": "instruction"},
    # judges of public benchmarks: each needs a `model` or a `remote`
    **{name: {"kind": "rubric", "rubric": name} for name in RUBRICS},
}


@dataclass(frozen=True)
class Asked:
    """An answer to be judged: `row` is what the verifier sees."""

    item: str
    role: str
    row: Row


class Judges:
    """The verifiers of all roles that are asked, made when first needed."""

    def __init__(self, settings: Settings, roles: Sequence[str]) -> None:
        """Raises ConfigError for a role without a verifier, or options that it does not take."""
        self._settings = settings
        self._judges: dict[str, Judge] = {}
        for role in roles:
            given = settings.judges.get(role, {})
            options = {**(DEFAULTS.get(role, {}) if "kind" not in given else {}), **given}
            if "kind" not in options:
                raise ConfigError(
                    f"judges.{role}: nothing judges this role: give it a `kind` and what that needs, such as `remote`"
                )
            try:
                self._judges[role] = Judge(create(role, options), options)
            except (UnknownVerifier, BadOptions) as error:
                raise ConfigError(f"judges.{role}: {error}") from error
        if unused := sorted(settings.judges.keys() - DEFAULTS.keys() - set(roles)):
            raise ConfigError(
                f"judges.{unused[0]}: no chosen suite asks for this role; asked are {', '.join(sorted(roles))}"
            )

    def identity(self) -> dict[str, str]:
        """Role -> the digest of its verifier and options."""
        return {role: judge.spec for role, judge in self._judges.items()}

    def judge(
        self, asked: Sequence[Asked], store: VerdictFile, done: Callable[[int], None]
    ) -> dict[tuple[str, str], Verdict]:
        """(item, role) -> verdict. `done` is told of every finished one, once."""
        found: dict[tuple[str, str], Verdict] = {}
        by_role: dict[str, list[Asked]] = defaultdict(list)
        for each in asked:
            by_role[each.role].append(each)
        for role, own in by_role.items():
            verdicts = self._role(self._judges[role], [each.row for each in own], store, done)
            found |= {(each.item, role): verdict for each, verdict in zip(own, verdicts, strict=True)}
        return found

    def _role(
        self, judged: Judge, rows: Sequence[Row], store: VerdictFile, done: Callable[[int], None]
    ) -> list[Verdict]:
        settings = self._settings
        judged.verifier.start()
        try:
            batch, limit_s = settings.judge_batch, settings.judge_timeout_s
            verdicts = judge(judged, rows, store, batch, limit_s, done)
            for _ in range(settings.judge_tries - 1):
                if all(verdict.status in ("ok", "abstain") for verdict in verdicts):
                    break
                verdicts = judge(judged, rows, store, batch, limit_s)
        finally:
            judged.verifier.stop()
        return verdicts
