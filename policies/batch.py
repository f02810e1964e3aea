"""What goes into a learner's step. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TrainingGroup:
    """One prompt and its K completions, as the learner assembled them. P prompt tokens, n_k tokens of completion k.

    kept: False where an environment wrote the token (search results, a user's edit): it is read by the model and stands in
    no loss, statistic or length. channels: weighted terms of the reward, NaN where a sample has none. costs: NaN where
    unknown. images: hashes of what the prompt shows, in order. channel_weights: what those terms were multiplied by.
    qualified: well formed, right and safe. values: of a critic, the return expected before each token. nodes: of a
    searched tree, the step that each token belongs to.
    """

    id: str
    prompt_ids: NDArray[np.int32]  # [P]
    completion_ids: list[NDArray[np.int32]]  # K of [n_k]
    behaviour: list[NDArray[np.float32]]  # K of [n_k], ln probabilities as sampled
    versions: list[NDArray[np.int32]]  # K of [n_k]
    rewards: NDArray[np.float64]  # [K]; not read where invalid
    valid: NDArray[np.bool_]  # [K]
    reference: list[NDArray[np.float32]] | None = None  # K of [n_k]
    kept: list[NDArray[np.bool_]] | None = None  # K of [n_k]; None: all
    channels: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)  # each [K]
    channel_weights: Mapping[str, float] = field(default_factory=dict)
    costs: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)  # each [K]
    thought_lengths: NDArray[np.int64] | None = None  # [K] kept tokens of the thought
    qualified: NDArray[np.bool_] | None = None  # [K]
    values: list[NDArray[np.float32]] | None = None  # K of [n_k]
    images: list[str] = field(default_factory=list)
    nodes: list[NDArray[np.int32]] | None = None  # K of [n_k]

    def __post_init__(self) -> None:
        count = len(self.completion_ids)
        lengths = [len(tokens) for tokens in self.completion_ids]
        columns: dict[str, Sequence[NDArray[Any]] | None] = {
            "behaviour": self.behaviour,
            "versions": self.versions,
            "reference": self.reference,
            "kept": self.kept,
            "values": self.values,
            "nodes": self.nodes,
        }
        for name, column in columns.items():
            if column is not None and [len(values) for values in column] != lengths:
                raise ValueError(f"group {self.id}: {name} does not have the lengths of the completions, {lengths}")
        entries = {"rewards": self.rewards, "valid": self.valid, **self.channels, **self.costs}
        optional = {"thought_lengths": self.thought_lengths, "qualified": self.qualified}
        for name, entry in {**entries, **optional}.items():
            if entry is not None and entry.shape != (count,):
                raise ValueError(f"group {self.id}: {name} must be [{count}], one entry a completion")

    @classmethod
    def supervised(
        cls, id: str, prompt_ids: Sequence[int], completion_ids: Sequence[int], kept: Sequence[bool] | None = None
    ) -> TrainingGroup:
        """A demonstration: one completion that nobody sampled, for the objective "sft" with the advantage "ones".

        Behaviour is left at 0, which no supervised option reads; `kept` masks tokens that are not to be learned.
        """
        tokens = np.asarray(completion_ids, np.int32)
        return cls(
            id=id,
            prompt_ids=np.asarray(prompt_ids, np.int32),
            completion_ids=[tokens],
            behaviour=[np.zeros(len(tokens), np.float32)],
            versions=[np.zeros(len(tokens), np.int32)],
            rewards=np.ones(1),
            valid=np.ones(1, np.bool_),
            kept=None if kept is None else [np.asarray(kept, np.bool_)],
        )

    def kept_of(self, sample: int) -> NDArray[np.bool_]:
        """[n_k], which tokens of a completion are the policy's own."""
        return np.ones(len(self.completion_ids[sample]), np.bool_) if self.kept is None else self.kept[sample]

    def own_versions(self, sample: int) -> NDArray[np.int32]:
        """Weight versions of the tokens of a completion that the policy sampled: what its age follows from."""
        return self.versions[sample][self.kept_of(sample)]


def encode(batch: Sequence[TrainingGroup]) -> bytes:
    """A batch as msgpack, for the other ranks of a learner."""
    plain = [{f.name: getattr(group, f.name) for f in fields(group)} for group in batch]
    return msgspec.msgpack.encode(plain, enc_hook=_pack_array)


def decode(message: bytes) -> list[TrainingGroup]:
    """What `encode` was given."""
    return [TrainingGroup(**plain) for plain in msgspec.msgpack.decode(message, ext_hook=_unpack_array)]


def _pack_array(value: Any) -> msgspec.msgpack.Ext:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"a training group holds no {type(value).__name__}")
    return msgspec.msgpack.Ext(1, msgspec.msgpack.encode((value.dtype.str, value.shape, value.tobytes())))


def _unpack_array(code: int, data: memoryview) -> NDArray[Any]:
    kind, shape, content = msgspec.msgpack.decode(data)
    return np.frombuffer(content, np.dtype(kind)).reshape(shape).copy()  # torch wants memory that may be written to
