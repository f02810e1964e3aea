"""SGLang as a server process, spoken to over its own HTTP: one that this engine starts on the loopback, or a remote one.

The server gets token ids and gives token ids (`--skip-tokenizer-init`). HTTP is spoken by aiohttp, which SGLang itself
needs and so is at hand wherever SGLang is; it reads many streams in one loop without a thread for each. This wire belongs
to the engine and is not the project's: nothing else in `policies/` has one.

New weights: decoding is paused (`in_place`: keys and values stay; `retract`: they are let go of), the server reads the
publication from the file system (a remote one must see the same path), decoding goes on. Each request carries the weight
version as its `extra_key`, so nothing that older weights computed is ever taken for a new request.

Verified against SGLang 0.5.23 on a CPU, where it needs the test rig `tests/policies/engines/sglang_cpu`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import math
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import psutil

from safeladder.policies.engines.base import CachePolicy, Capabilities, EngineError
from safeladder.policies.engines.client import Ask, ClientEngine, Piece

# The engine without kernels for a GPU, one step after the other.
CPU: Final = (
    *("--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"),
    *("--disable-cuda-graph", "--disable-overlap-schedule"),
)
CALL_S: Final = 60.0  # for a call that does not generate
LOAD_S: Final = 600.0  # for reading new weights
POLL_S: Final = 1.0  # between two looks at the load
SILENT_POLLS: Final = 30  # a remote server that does not answer so many is taken for dead
STOP_S: Final = 10.0
SCORE_LIMIT: Final = 2**22  # log-probabilities of one score, all tokens' vocabularies together: they travel as JSON
_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None)


class SglangEngine(ClientEngine):
    """`address`: a server that runs already, "http://host:port", started with `--skip-tokenizer-init
    --incremental-streaming-output --enable-priority-scheduling --schedule-low-priority-values-first
    --sampling-mask-max-tokens VOCABULARY`; None starts one.
    `start_s`: its time to get ready. `arguments`: more of the server's command line."""

    engine_name = "sglang"
    capabilities: ClassVar[Capabilities] = Capabilities(
        exact_logprobs=True, seeded=False, prefix_tokens=1, swaps=("keep", "recompute"), min_p=True
    )

    def __init__(
        self,
        path: Path,
        *,
        version: int = 0,
        dtype: str = "float32",
        device: str = "cpu",
        max_sequences: int = 16,
        max_tokens: int = 16_384,
        address: str | None = None,
        start_s: float = 300.0,
        arguments: Sequence[str] = (),
    ) -> None:
        super().__init__(path, version=version, max_sequences=max_sequences, max_tokens=max_tokens)
        self._dtype, self._device, self._address = dtype, device, address
        self._start_s, self._arguments = start_s, list(arguments)
        self._server: asyncio.subprocess.Process | None = None
        self._tree: set[psutil.Process] = set()
        self._session: Any = None
        self._load = {"running": 0.0, "cache_tokens": 0.0, "cache_capacity": float(max_tokens), "steps": 0.0}

    @classmethod
    def open(cls, path: Path, **options: Any) -> SglangEngine:
        return cls(path, **options)

    # ------------------------------------------------------------------------------------------------------ life

    async def _launch(self) -> None:
        try:
            import aiohttp
        except ImportError as error:
            raise EngineError(f"the sglang engine speaks HTTP by aiohttp, which is missing: {error}") from error
        self._http = aiohttp
        if self._address is None:
            self._address = await self._serve()
        self._session = aiohttp.ClientSession(
            self._address, timeout=aiohttp.ClientTimeout(total=None), connector=aiohttp.TCPConnector(limit=0)
        )
        try:
            async with asyncio.timeout(self._start_s):
                while not await self._ready():
                    await asyncio.sleep(0.2)
        except TimeoutError:
            raise EngineError(f"SGLang at {self._address} was not ready in {self._start_s} s") from None
        self._note_tree()
        await self._post("/update_weight_version", {"new_version": str(self._version), "abort_all_requests": False})

    async def _serve(self) -> str:
        """Starts a server and returns its address. It ends with this process, and is in its group: a supervisor that
        kills the group also gets what the server has started."""
        with socket.socket() as chosen:
            chosen.bind(("127.0.0.1", 0))
            port = chosen.getsockname()[1]
        command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(self.path)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", self._dtype, "--log-level", "warning"]
        command += ["--max-running-requests", str(self.max_sequences), "--max-total-tokens", str(self.max_tokens)]
        command += ["--context-length", str(self._outline.context), "--skip-tokenizer-init"]
        command += ["--sampling-mask-max-tokens", str(self._outline.vocabulary)]
        command += ["--incremental-streaming-output", "--enable-priority-scheduling"]
        command += ["--schedule-low-priority-values-first", *(CPU if self._device == "cpu" else ()), *self._arguments]
        environment = {**os.environ, **({"SGLANG_USE_CPU_ENGINE": "1"} if self._device == "cpu" else {})}
        parent = os.getpid()
        self._server = await asyncio.create_subprocess_exec(
            *command,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            preexec_fn=lambda: _die_with(parent),
        )
        return f"http://127.0.0.1:{port}"

    async def _ready(self) -> bool:
        if self._server is not None and self._server.returncode is not None:
            raise EngineError(f"SGLang did not start: exit {self._server.returncode}, see this process's output")
        try:
            async with asyncio.timeout(CALL_S), self._session.get("/health") as answer:
                return bool(answer.status == 200)
        except (self._http.ClientError, TimeoutError):
            return False

    async def _died(self) -> str:
        """Looks at the load, too: the statistics must not wait for it."""
        silent = 0
        while True:
            if self._server is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        return f"SGLang's server ended: exit {await self._server.wait()}"
            else:
                await asyncio.sleep(POLL_S)
            try:
                await self._look()
                silent = 0
            except EngineError as error:
                silent += 1
                if silent >= SILENT_POLLS and self._server is None:
                    return f"{self._address} has not answered for {silent * POLL_S:.0f} s: {error}"

    async def _look(self) -> None:
        answer = await self._get("/v1/loads")
        loads = answer.get("loads", [])
        self._load["running"] = float(sum(load.get("num_running_reqs", 0) for load in loads))
        self._load["cache_tokens"] = float(sum(load.get("num_used_tokens", 0) for load in loads))
        capacity = float(sum(load.get("max_total_num_tokens", 0) for load in loads))
        self._load["cache_capacity"] = capacity or self._load["cache_capacity"]

    async def _shut_down(self) -> None:
        if self._session is not None:
            await self._session.close()
        server = self._server
        if server is None:
            return
        # Its scheduler is a child of its own and must not outlive it.
        self._note_tree()
        if server.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                server.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_S):
                    await server.wait()
            with contextlib.suppress(ProcessLookupError):
                server.kill()
        for process in self._tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        async with asyncio.timeout(STOP_S):
            await server.wait()

    def _note_tree(self) -> None:
        """What the server has started. Noted while it lives: of a dead one, the kernel no longer knows."""
        with contextlib.suppress(psutil.NoSuchProcess):
            if self._server is not None:
                self._tree |= set(psutil.Process(self._server.pid).children(recursive=True))

    async def _ping(self) -> None:
        await self._get("/server_info")  # its answer goes through the scheduler

    def _gauges(self) -> Mapping[str, float]:
        # Those that have brought a token decode; the server's own count is a poll old.
        answered = sum(sample.answered for _, sample in self._going())
        return {**self._load, "running": float(answered)}

    # -------------------------------------------------------------------------------------------------- requests

    async def _ask(self, ask: Ask) -> AsyncGenerator[Piece]:
        sampling, whole = ask.sampling, False
        truncated = (sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0) and sampling.temperature > 0
        body = {
            "rid": ask.name,
            "input_ids": ask.ids,
            "sampling_params": {
                "max_new_tokens": ask.max_new_tokens,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                # The mask below is given for a finite top-k only.
                "top_k": sampling.top_k or (self._outline.vocabulary if truncated else -1),
                "min_p": sampling.min_p,
                "ignore_eos": True,  # the stop tokens are the same for all engines, and in the next line
                "stop_token_ids": sorted(self._outline.stop_ids),
            },
            "return_logprob": True,
            "stream": True,
            "priority": ask.priority,
            "extra_key": ask.salt,
        }
        if truncated:  # the log-probability among what truncation leaves, instead of among all tokens
            body["return_sampling_mask"] = True
        versions: list[int] = []
        try:
            async for answer in self._events("/generate", body):
                piece = _piece(answer, truncated)
                self._load["steps"] += 1  # what the generator takes for progress
                versions += piece.versions
                whole = piece.finish is not None
                # The server's own record comes only with the last token, too late for a stream. It must say the same.
                if (spans := _labels(answer["meta_info"])) is not None and spans[: len(versions)] != versions:
                    raise EngineError(f"tokens were labelled with versions {versions}, SGLang says {spans}")
                yield piece
        finally:
            if not whole and not self._over.done():
                with contextlib.suppress(EngineError):
                    await self._post("/abort_request", {"rid": ask.name})

    async def _score(self, prompt: list[int], completion: list[int], temperature: float) -> list[float]:
        """SGLang scores a prompt at temperature 1. At another one it is asked for the whole vocabulary, from which the
        right value follows exactly: ln p_T(x) = ln p(x)/T - ln sum_y exp(ln p(y)/T)."""
        body: dict[str, Any] = {
            "rid": f"safeladder-score-{next(self._names)}",
            "input_ids": prompt + completion,
            "sampling_params": {"max_new_tokens": 1, "temperature": 0.0, "ignore_eos": True},
            "return_logprob": True,
            "logprob_start_len": len(prompt) - 1,
            "extra_key": str(self._version),
        }
        if temperature != 1.0:
            vocabulary = self._outline.vocabulary
            if len(completion) * vocabulary > SCORE_LIMIT:
                raise ValueError(
                    f"request refused: {len(completion)} tokens of a vocabulary of {vocabulary} are too many to score "
                    "at a temperature other than 1 in one call"
                )
            body["token_ids_logprob"] = list(range(vocabulary))
        answer = await self._post("/generate", body, LOAD_S)
        meta = answer["meta_info"]
        own = [float(entry[0]) for entry in meta["input_token_logprobs"][-len(completion) :]]
        if temperature == 1.0:
            return own
        rows = meta["input_token_ids_logprobs"][-len(completion) :]
        return [_tempered(value, row, temperature) for value, row in zip(own, rows, strict=True)]

    # --------------------------------------------------------------------------------------------- weights, pauses

    async def _freeze(self, policy: CachePolicy) -> None:
        await self._post("/pause_generation", {"mode": "retract" if policy == "recompute" else "in_place"})
        await self._get("/server_info")  # the pause is not answered by the scheduler; this is, and comes after it

    async def _replace(self, path: Path, version: int, policy: CachePolicy) -> None:
        body = {
            "model_path": str(path.resolve()),
            "weight_version": str(version),
            "flush_cache": policy == "recompute",
            "abort_all_requests": False,
        }
        await self._post("/update_weights_from_disk", body, LOAD_S)

    async def _thaw(self) -> None:
        await self._post("/continue_generation", {})

    # -------------------------------------------------------------------------------------------------------- HTTP

    async def _post(self, place: str, body: Mapping[str, Any], deadline_s: float = CALL_S) -> Any:
        return await self._call("POST", place, body, deadline_s)

    async def _get(self, place: str) -> Any:
        return await self._call("GET", place, None, CALL_S)

    async def _call(self, method: str, place: str, body: Mapping[str, Any] | None, deadline_s: float) -> Any:
        try:
            async with asyncio.timeout(deadline_s), self._session.request(method, place, json=body) as answer:
                text = await answer.text()
        except TimeoutError:
            raise EngineError(f"SGLang did not answer {place} in {deadline_s} s") from None
        except self._http.ClientError as error:
            raise EngineError(f"SGLang is not reached at {place}: {error}") from error
        if answer.status != 200:
            raise EngineError(f"SGLang refused {place} with {answer.status}: {text[:500]}")
        return json.loads(text) if text.startswith(("{", "[")) else text

    async def _events(self, place: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """The server-sent events of one request. Raises EngineError."""
        rest = b""
        try:
            async with self._session.post(place, json=body) as answer:
                if answer.status != 200:
                    raise EngineError(f"SGLang refused a request with {answer.status}: {(await answer.text())[:500]}")
                async for data in answer.content.iter_any():
                    *events, rest = (rest + data).split(b"\n\n")
                    for event in events:
                        content = event.removeprefix(b"data: ")
                        if content == b"[DONE]":
                            return
                        message = json.loads(content)
                        if "error" in message:
                            raise EngineError(f"SGLang failed at a request: {message['error']}")
                        yield message
        except self._http.ClientError as error:
            raise EngineError(f"SGLang broke off a request: {error}") from error


def _piece(answer: Mapping[str, Any], truncated: bool) -> Piece:
    meta = answer["meta_info"]
    tokens = answer["output_ids"]
    if truncated:
        logprobs = meta["output_token_sampling_logprobs"]
    else:
        logprobs = [entry[0] for entry in meta["output_token_logprobs"]]
    logprobs = [float(value) for value in logprobs[len(logprobs) - len(tokens) :]]
    finish = meta.get("finish_reason") or {}
    if (kind := finish.get("type")) == "abort":  # not by us: we have stopped listening by then
        raise EngineError(f"SGLang gave a request up: {finish.get('message')}")
    return Piece(tokens, logprobs, [int(meta["weight_version"])] * len(tokens), kind, meta.get("cached_tokens") or 0)


def _labels(meta: Mapping[str, Any]) -> list[int] | None:
    spans = meta.get("weight_versions")
    if spans is None:
        return None
    return [int(span["version"]) for span in spans for _ in range(span["start"], span["end"])]


def _tempered(value: float, row: Sequence[Sequence[Any]], temperature: float) -> float:
    """ln p at `temperature` from log-probabilities at temperature 1: the token's own and the vocabulary's."""
    scaled = [float(entry[0]) / temperature for entry in row]
    highest = max(scaled)
    return value / temperature - highest - math.log(math.fsum(math.exp(entry - highest) for entry in scaled))


def _die_with(parent: int) -> None:
    """Runs in the server before its command: asks for SIGTERM at the parent's death, which it passes on, and goes if the
    parent is dead already."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)
