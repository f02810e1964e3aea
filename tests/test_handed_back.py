"""A run whose generator is stopped in the middle: what it had made goes on in its successor, and is trained once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
from running import Running

from safeladder.protocol import codec
from safeladder.protocol import journal as j
from safeladder.protocol import messages as m


class Interrupter:
    """Sends SIGTERM to the generator each time that one of its processes has come to its second group."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.struck: set[int] = set()

    def strike(self) -> bool:
        """True when a process has handed a group back."""
        lines = self.running.events("generator")
        if any(line["event"] == "group.handed_back" for line in lines):
            return True
        begun = [line["pid"] for line in lines if line["event"] == "process.started"][-1:]
        since = lines[max((n for n, line in enumerate(lines) if line["event"] == "process.started"), default=0) :]
        if any(line["event"] == "group.generated" for line in since):
            for pid in set(begun) - self.struck:
                self.struck.add(pid)
                os.kill(pid, signal.SIGTERM)
        return False


def samples(record: j.Moved) -> list[list[tuple[int, float, int]]]:
    """Tokens of each sample, with log-probability and version."""
    _, arrays = codec.unpack(codec.Parcel(record.work, list(record.frames)))
    tokens = list(
        zip(*(arrays[name].tolist() for name in ("completion_ids", "behaviour_logprobs", "versions")), strict=True)
    )
    ends = np.cumsum(arrays["lengths"]).tolist()
    return [tokens[end - length : end] for end, length in zip(ends, arrays["lengths"].tolist(), strict=True)]


def finishes(record: j.Moved) -> set[str]:
    payload, _ = codec.unpack(codec.Parcel(record.work, list(record.frames)))
    return {completion.finish for completion in payload.completions} if isinstance(payload, m.Group) else set()


def test_a_generator_that_is_stopped_in_the_middle_loses_no_token(tmp_path: Path) -> None:
    with Running(
        tmp_path,
        "hub.durability=full",
        "sampling.max_new_tokens=100",
        "learner.steps=4",
        "pools.searcher.replicas=0",
        "pools.generator.restart={max: 20, per_s: 600, backoff_s: 0.1}",
    ) as running:
        running.until(Interrupter(running).strike, deadline_s=240.0)
        assert running.wait(240.0) == 0, running.said()
        handed = running.events("generator", "group.handed_back")
        continued = running.events("generator", "group.continued")
        generated = {event["id"]: event for event in running.events("generator", "group.generated")}
        audit = running.audit()
        assert audit.returncode == 0, audit.stdout
    first = continued[0]
    assert first["tokens"] == next(event["tokens"] for event in handed if event["id"] == first["id"]) > 0
    assert generated[first["id"]]["kept"] >= first["tokens"]

    moves = [r for r in j.read(running.run.journal) if isinstance(r, j.Moved) and r.id == first["id"]]
    partial = next(record for record in moves if record.work.stop == 0)
    whole = next(record for record in moves if record.work.stop == 1)
    assert "abort" in finishes(partial)
    assert all("abort" not in finishes(record) for record in moves if record.work.stop > 0)
    assert sum(map(len, samples(partial))) == first["tokens"]
    for part, full in zip(samples(partial), samples(whole), strict=True):
        assert full[: len(part)] == part
