"""A run that only serves, with the tiny model, and gateways as pools of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from running import TINY

from safeladder.launch.config import Pool, load, save_resolved
from safeladder.launch.gateway import GATEWAY
from safeladder.launch.rundir import RunDirectory
from safeladder.launch.sections import Recipe
from safeladder.policies.model import resolve

KEY = "sk-a-key-for-tests-only"
QUESTION = [{"role": "user", "content": "Count to three."}]
SEARCH = {"safeladder": {"options": {"width": 2, "candidates": 2}}}


@dataclass
class Serving:
    """A run with the gateways `open` and `guarded`, which wants a key, has narrow limits and calls repetition unsafe."""

    run: RunDirectory

    def address(self, pool: str = "open") -> str:
        return next(event["address"] for event in self.events(pool) if event["event"] == "gateway.listening")

    def events(self, pool: str) -> list[dict[str, Any]]:
        path = self.run.log(pool, 0)
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def of(self, request: str, pool: str = "generator") -> list[dict[str, Any]]:
        """What a pool has logged of the works of a request."""
        return [event for event in self.events(pool) if str(event.get("id", "")).startswith(f"{request}/")]

    def works(self, request: str) -> set[str]:
        """The works of a request that the generator has begun."""
        return {event["id"] for event in self.of(request)}

    def long_seed(self, content: str, tokens: int = 320) -> int:
        """A seed with which the policy has more than `tokens` to say to this."""
        for seed in range(100):
            body = {"model": "policy", "messages": [{"role": "user", "content": content}], "seed": seed}
            sent = json.dumps({**body, "max_tokens": tokens}).encode()
            asked = Request(f"{self.address()}/v1/chat/completions", sent, {"content-type": "application/json"})
            with urlopen(asked, timeout=60) as response:
                if json.load(response)["choices"][0]["finish_reason"] == "length":
                    return seed
        raise AssertionError("every answer is short")


def until(condition: Callable[[], bool], deadline_s: float = 60.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"not within {deadline_s} s"
        time.sleep(0.02)


@contextmanager
def serving(
    folder: Path,
    options: Mapping[str, Any] | None = None,
    model: str = "tiny",
    generator: Mapping[str, Any] | None = None,
    pools: Sequence[str] = ("open", "guarded"),
) -> Iterator[Serving]:
    """`options`: of the gateway `open`, besides a free port. `generator`: options of the generator. `pools`: the gateways."""
    config = load(TINY)
    config.policy.model, config.recipe = (
        str(resolve(model)),
        Recipe(),
    )  # a folder: the gateways need no torch to find it
    config.run.directory, config.run.name, config.hub.durability = str(folder), "run", "memory"
    asked = {**config.pools["searcher"].options, "port": 0, "step_tokens": 8}
    keys = folder / "keys"
    keys.write_text(f"# for tests\nada {KEY}\n")
    guarded = {
        **asked,
        "keys_file": str(keys),
        "concurrent_requests": 1,
        "requests_per_minute": 1000,
        "body_bytes": 4096,
        "dimensions": {"safety": "repetition"},
    }
    config.pools = {name: config.pools[name] for name in ("generator", "rules")}
    if generator is not None:
        config.pools["generator"].options = dict(generator)
        config.pools["generator"].credit = generator["max_sequences"]
        config.pools["generator"].threads = 2
    for name, chosen in (("open", {**asked, **(options or {})}), ("guarded", guarded)):
        if name in pools:
            config.pools[name] = Pool(actor=GATEWAY, queues=[name], options=chosen)
    file, output = folder / "cluster.yaml", folder / "launcher.out"
    save_resolved(config, file)
    with output.open("wb") as out:
        command = [sys.executable, "-m", "safeladder.launch.serve", str(file)]
        launcher = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=dict(os.environ))
    up = Serving(RunDirectory(folder / "run"))

    def ready() -> bool:
        assert launcher.poll() is None, output.read_text()[-2000:]
        return all(any(e["event"] == "actor.ready" for e in up.events(pool)) for pool in config.pools)

    try:
        until(ready, 240.0)
        yield up
    finally:
        launcher.send_signal(signal.SIGTERM)
        try:
            launcher.wait(30)
        finally:
            launcher.kill()
            launcher.wait(30)
