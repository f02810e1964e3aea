"""Deliberation over the pools of a run: the two ports of `policies/search/deliberate` by calls, and groups made of trajectories.

What blocks a call is the pools' capacity, and nothing for longer than its deadline. If a generator or retriever dies, the hub gives the
call to another; if none answers in time the call raises `CallError`, which ends all trajectories of the question or group: it
fails and comes again, and nothing of it is ever scored.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from safeladder.actors.actor import Output
from safeladder.actors.pools import Asked, Caller
from safeladder.actors.retriever import REQUEST, RESULT, unpacked
from safeladder.policies.search.deliberate.trajectory import Segment, Trajectory, TurnRequest
from safeladder.policies.search.retrieval.documents import Hit, RetrievalError
from safeladder.policies.search.tree import Node, Tree
from safeladder.protocol import codec
from safeladder.protocol import messages as m


class PoolTurnSampler:
    """A `TurnSampler` over the generator pool, one sample a call.

    The first turn sends the question; the generator answers with the prompt's tokens too, and from then on tokens are sent, so that every
    turn continues exactly what was sampled and shown. `sampling`: all but length, stop and seed. `min_version`: the oldest weights.
    """

    def __init__(self, caller: Caller, queue: str, sampling: m.Sampling, min_version: int = 0) -> None:
        self._caller, self._queue = caller, queue
        self._sampling, self._min_version = sampling, min_version

    async def write(self, request: TurnRequest) -> Segment:
        asked: Asked = request.prompt
        sampling = msgspec.structs.replace(
            self._sampling,
            samples=1,
            max_new_tokens=request.max_new_tokens,
            stop=[*self._sampling.stop, *request.stop][:16],
            seed=request.seed,
        )
        group = m.Group(asked.record, sampling, min_version=self._min_version, system=asked.system, prefix=asked.prefix)
        given: codec.Arrays = {}
        if asked.token_ids is not None:
            given = {"prompt_ids": np.array([*asked.token_ids, *request.token_ids], np.int32)}
        answered, arrays = codec.unpack(await self._caller.call(asked, group, given, [self._queue]))
        assert isinstance(answered, m.Group)
        if asked.token_ids is None:
            asked.token_ids = arrays["prompt_ids"].tolist()
        columns = [arrays[name].tolist() for name in ("completion_ids", "behaviour_logprobs", "versions")]
        return Segment(answered.completions[0].text, *columns)


class PoolRetriever:
    """A `Retriever` over the retriever pool."""

    def __init__(self, caller: Caller, queue: str, name: str) -> None:
        self._caller, self._queue, self._name = caller, queue, name

    async def search(self, queries: Sequence[str], count: int) -> list[list[Hit]]:
        data = {"queries": list(queries), "topk": count, "return_scores": True}
        parcel = await self._caller.send(self._name, m.Document(REQUEST, data), {}, [self._queue])
        payload, _ = codec.unpack(parcel)
        if not isinstance(payload, m.Document) or payload.kind != RESULT:
            raise RetrievalError(f"the queue {self._queue!r} answered with no {RESULT}")
        found = payload.data.get("result")
        if not isinstance(found, list) or len(found) != len(queries):
            raise RetrievalError(f"the queue {self._queue!r} did not answer {len(queries)} queries")
        try:
            return [[unpacked(row) for row in rows] for rows in found]
        except (ValueError, TypeError, AttributeError) as error:
            raise RetrievalError(f"the queue {self._queue!r}: {error}") from error


def group_of(group: m.Group, prompt_ids: Sequence[int], trajectories: Sequence[Trajectory]) -> Output:
    """The group with its trajectories as completions, and the arrays that `messages.Group` lists, `own` among them."""
    rows = [[segment for segment in trajectory.segments if segment.token_ids] for trajectory in trajectories]
    flat = [segment for row in rows for segment in row]
    arrays: codec.Arrays = {
        "prompt_ids": np.array(prompt_ids, np.int32),
        "lengths": np.array([sum(len(segment.token_ids) for segment in row) for row in rows], np.int32),
        "completion_ids": _column([segment.token_ids for segment in flat], np.int32),
        "behaviour_logprobs": _column([segment.logprobs for segment in flat], np.float32),
        "versions": _column([segment.versions for segment in flat], np.int32),
        "own": _column([[int(segment.own)] * len(segment.token_ids) for segment in flat], np.uint8),
    }
    completions = [
        m.Completion(trajectory.text, "stop" if trajectory.ended == "answer" else "length")
        for trajectory in trajectories
    ]
    return Output(msgspec.structs.replace(group, completions=completions), arrays)


def group_of_tree(group: m.Group, prompt_ids: Sequence[int], tree: Tree, ends: Sequence[Node]) -> Output:
    """The group with the answers that end at `ends` as completions: every token as it was sampled, with the step that it belongs to."""
    paths = [[node for node in tree.path(end) if node.step.token_ids] for end in ends]
    flat = [node for path in paths for node in path]
    steps = [node.step for node in flat]
    arrays: codec.Arrays = {
        "prompt_ids": np.array(prompt_ids, np.int32),
        "lengths": np.array([sum(len(node.step.token_ids) for node in path) for path in paths], np.int32),
        "completion_ids": _column([step.token_ids for step in steps], np.int32),
        "behaviour_logprobs": _column(
            [step.logprobs if step.own else [0.0] * len(step.token_ids) for step in steps], np.float32
        ),
        "versions": _column([step.versions if step.own else [0] * len(step.token_ids) for step in steps], np.int32),
        "own": _column([[int(step.own)] * len(step.token_ids) for step in steps], np.uint8),
        "nodes": _column([[node.number] * len(node.step.token_ids) for node in flat], np.int32),
    }
    completions = [m.Completion(tree.text(end), "stop" if end.step.final else "length") for end in ends]
    return Output(msgspec.structs.replace(group, completions=completions), arrays)


def seed_of(seed: int, sample: int) -> int:
    """The seed of one trajectory of a group."""
    digest = hashlib.blake2b(f"{seed}/{sample}".encode(), digest_size=8, key=b"safeladder.trajectory.1").digest()
    return int.from_bytes(digest, "little") >> 1


async def all_or_none(parts: Sequence[Any]) -> list[Any]:
    """The results of all; the first error ends the others and is raised as itself."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _column(parts: Sequence[Sequence[Any]], dtype: Any) -> Any:
    return np.array([value for part in parts for value in part], dtype)
