"""From a judged group to a place in the learner's order: rewards, training arrays, whether there is anything to learn from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from safeladder.actors.actor import Delivery, Reject
from safeladder.launch.config import Config
from safeladder.policies.batch import TrainingGroup
from safeladder.policies.recipe import Recipe, RecipeError, Rewards, accuracy, normalised_apart, rewards
from safeladder.policies.thought import thought_length
from safeladder.protocol import messages as m
from safeladder.protocol.codec import Arrays
from safeladder.protocol.images import ImageError, Reference, references

if TYPE_CHECKING:
    from safeladder.policies.credit import Credit


@dataclass
class Place:
    """A group in the order of admission, ready to be trained. informative: whether it carries any gradient."""

    delivery: Delivery
    rewards: Rewards
    training: TrainingGroup
    informative: bool = True
    staleness: int = 0
    accuracy: float | None = None  # share of its samples that qualify; None: unknown

    @property
    def id(self) -> str:
        return self.delivery.id

    @property
    def sequence(self) -> int:
        return self.delivery.group.sequence

    @property
    def lengths(self) -> list[int]:
        """Tokens of each completion that the policy wrote."""
        return [int(self.training.kept_of(k).sum()) for k in range(len(self.training.completion_ids))]


class Preparation:
    """Makes places. Thread-safe: it holds nothing that changes."""

    def __init__(
        self,
        config: Config,
        recipe: Recipe,
        tokenizer: Any,
        fetch: Callable[[m.Record], Sequence[Reference]] = references,
    ) -> None:
        """fetch: brings a record's images to where this host's ranks read them; raises ImageError."""
        self._config, self._recipe, self._tokenizer, self._fetch = config, recipe, tokenizer, fetch
        sections = config.constraints
        self._constrained = {*sections, *(section.acts_on for section in sections.values() if section.acts_on)}
        self._credit: Credit | None = None
        if config.learner.dynamic_sampling:
            from safeladder.actors.training import step_options
            from safeladder.policies.credit import Credit

            self._credit = Credit(step_options(config))

    def place(self, delivery: Delivery) -> Place:
        """A group's place. Raises Reject for a group that lacks what training needs."""
        earned, training = self.prepare(delivery.id, delivery.group, delivery.arrays)
        known = accuracy(earned, self._recipe.family(delivery.group.record.label))
        return Place(delivery, earned, training, self._informative(training), accuracy=known)

    def prepare(self, identity: str, group: m.Group, arrays: Arrays) -> tuple[Rewards, TrainingGroup]:
        """Rewards and training arrays of a group. Raises Reject."""
        needed = {"prompt_ids", "lengths", "completion_ids", "behaviour_logprobs", "versions"}
        if self._config.learner.reference_kl > 0:
            needed.add("reference_logprobs")
        if missing := needed - set(arrays):
            raise Reject(f"group {identity!r} came without {sorted(missing)}; which stop of its route makes them?")
        try:
            earned = rewards(group, self._recipe)
        except RecipeError as error:
            raise Reject(str(error)) from None
        shown = self._shown(group.record)
        ends = np.cumsum(arrays["lengths"])[:-1]
        completions = np.split(arrays["completion_ids"], ends)
        kept = np.split(arrays["own"].astype(np.bool_), ends) if "own" in arrays else None
        family = self._recipe.family(group.record.label)
        channels, weights = normalised_apart(earned.terms, family)
        unknown = np.full(len(group.completions), np.nan)
        training = TrainingGroup(
            id=identity,
            prompt_ids=arrays["prompt_ids"],
            completion_ids=completions,
            behaviour=np.split(arrays["behaviour_logprobs"], ends),
            versions=np.split(arrays["versions"], ends),
            rewards=earned.total,
            valid=earned.valid,
            reference=np.split(arrays["reference_logprobs"], ends) if "reference_logprobs" in needed else None,
            kept=kept,
            channels=channels,
            channel_weights=weights,
            # a family that does not name a constrained cost has nothing to say of it
            costs={**dict.fromkeys(self._constrained, unknown), **earned.costs},
            thought_lengths=self._thought_lengths(completions, kept),
            qualified=earned.qualified,
            images=shown,
            nodes=np.split(arrays["nodes"], ends) if "nodes" in arrays else None,
        )
        return earned, training

    def _shown(self, record: m.Record) -> list[str]:
        """The hashes of the record's images, which can be read from now on."""
        try:
            return [reference.hash for reference in self._fetch(record)]
        except ImageError as error:
            raise Reject(f"{record.id!r}: {error}") from None

    def _informative(self, training: TrainingGroup) -> bool:
        """Always true where nobody asks (`learner.dynamic_sampling`)."""
        if self._credit is None:
            return True
        try:
            return self._credit.informative(training, self._constrained)
        except ValueError as error:  # CreditError; its module imports torch
            raise Reject(str(error)) from None

    def _thought_lengths(
        self, completions: Sequence[NDArray[np.int32]], kept: Sequence[NDArray[np.bool_]] | None
    ) -> NDArray[np.int64] | None:
        """Counted only where a rule looks at lengths."""
        if not (self._config.learner.length_rewards or self._config.learner.length_advantage):
            return None
        masks = [None] * len(completions) if kept is None else [mask.tolist() for mask in kept]
        return np.array(
            [thought_length(self._tokenizer, c.tolist(), mask) for c, mask in zip(completions, masks, strict=True)],
            np.int64,
        )


def digest(batch: Sequence[TrainingGroup]) -> str:
    """Names the tokens, images and rewards of a batch, for the ledger."""
    found = hashlib.blake2b(digest_size=16)
    for group in batch:
        for array in [group.prompt_ids, *group.completion_ids, *group.behaviour, group.rewards]:
            found.update(np.ascontiguousarray(array).tobytes())
        found.update("".join(group.images).encode())
    return found.hexdigest()


def summarize(places: Sequence[Place]) -> dict[str, Any]:
    """Means over a batch for the log: rewards by family and by verifier (None where nothing could be judged)."""
    families: dict[str, list[float]] = {}
    channels: dict[str, list[float]] = {}
    unsafe: list[float] = []
    for place in places:
        earned, group = place.rewards, place.delivery.group
        families.setdefault(group.record.label, []).extend(earned.total[earned.valid].tolist())
        for name, values in earned.channels.items():
            channels.setdefault(name, []).extend(values[np.isfinite(values)].tolist())
        unsafe += earned.unsafe[np.isfinite(earned.unsafe)].tolist()
    totals = [reward for values in families.values() for reward in values]
    unjudged = [place for place in places if place.rewards.problems]
    finishes = [completion.finish for place in places for completion in place.delivery.group.completions]
    return {
        "reward_mean": _mean(totals),
        "reward_std": round(float(np.std(totals)), 6) if totals else None,
        "unsafe_rate": _mean(unsafe),
        "families": {label: _mean(values) for label, values in sorted(families.items())},
        "channels": {name: _mean(values) for name, values in sorted(channels.items())},
        "samples": len(finishes),
        "unjudged_groups": len(unjudged),
        "unjudged_samples": sum(len(place.rewards.problems) for place in unjudged),
        "truncated_ratio": round(finishes.count("length") / max(1, len(finishes)), 4),
    }


def explain(earned: Rewards) -> dict[str, Any]:
    """Of each completion of a group for the log: reward and channels, None where there is none, and why not."""
    return {
        "rewards": _column(earned.total),
        "channels": {name: _column(values) for name, values in earned.channels.items()},
        **({"problems": {str(k): why[:200] for k, why in earned.problems.items()}} if earned.problems else {}),
    }


def _column(values: NDArray[Any]) -> list[float | None]:
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values.tolist()]


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 6) if values else None
